"""What a subject's docstrings say, looked up by words in a sentence: said with its place, or not said."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from reports.model import DocstringPart, Subject
from reports.text import shortened

LONGEST = 240
# A sentence about what is not said states nothing.
SILENCE = re.compile(
    r"(say|state|tell|mention|document|speak|promise)\w*\W+(nothing|not|no word)\b|"
    r"\b(not|n't|never|nowhere|nothing)\W+(\w+\W+)?(say|said|stated?|told|mention\w*|document\w*)\b|\bundocumented\b",
    re.IGNORECASE,
)
# That a mode is left out takes more than its name: "dropout: the share of entries that are dropped" does not say it.
LEFT_OUT = re.compile(
    r"\b(no|not|none|never|only|without|alone|always|instead|cannot|can't|isn't|aren't|doesn't|don't|unsupported|"
    r"left out|leaves? out|ignor\w+|refus\w+|rais\w+|reject\w+|missing|lacks?|absent|omit\w*|drops? the|neither|nor|"
    r"unavailable|restricted|limited|must|unless|equals?|has to)\b|"
    r"(alpha|α|scal(e|ing))\s*==?\s*(the )?(\w+\.)?(lora_)?(r|rank)\b",
    re.IGNORECASE,
)
# The texts that a function's parameters are by default, as they are quoted: they leave nothing out.
DEFAULTS = re.compile(r"\w+=['\"].*['\"]")
GATES = r"gat(e[sd]?|ing)|(re)?scal(e[sd]?|ing)|multipl(y|ies|ied)"
# How an option or a dtype is spelled in words and in code.
SPELLINGS: Mapping[str, str] = {
    "dropout": r"drop-?\s?outs?\b|(lora|module)_dropout",
    "gram_schmidt": r"gram\W?schmidt|apply_gs",
    "gate": rf"\b({GATES})\b.{{0,40}}\b(in|out)puts?\b|\b(in|out)puts?\b.{{0,40}}\b({GATES})\b",
    "feedforward": r"feed\W?forward|\bffn?\b|is_feedforward|input side",
    "rslora": r"(use_)?rs_?lora|rank\W?stabili[sz]ed",
    "alpha": r"(lora_)?alpha|α",
    "lambda0": r"lambda_?0?|λ",
    "float16": r"float16|fp16|half\b",
    "bfloat16": r"bfloat16|bf16",
    "float32": r"float32|fp32|single precision",
    "float64": r"float64|fp64|double",
}
HALF = r"half[\W_]precision"


@dataclass(frozen=True)
class Statement:
    """A sentence of a docstring and where it stands."""

    sentence: str
    place: str

    @property
    def words(self) -> str:
        """The sentence in quotation marks, with its place."""
        return f'"{shortened(self.sentence, LONGEST)}"' + (f" (`{self.place}`)" if self.place else "")


def parts_of(subject: Subject, variant: str) -> tuple[DocstringPart, ...]:
    """Where the subject states its choices; what is known only as text, its wrapper's words, has no place."""
    parts = subject.docstring_parts.get(variant, ())
    known = "\n".join(_flat(part.text) for part in parts)
    blocks = re.split(r"\n\s*\n", subject.docstrings.get(variant, ""))
    rest = "\n\n".join(b for b in blocks if b.strip() and _flat(b) not in known)
    return (*parts, DocstringPart("", 0, rest)) if rest else parts


def _flat(words: str) -> str:
    return " ".join(words.split())


def stating(parts: Iterable[DocstringPart], phrases: Iterable[str]) -> Statement | None:
    """The first sentence in which one of the phrases (regular expressions) occurs, from the start of a word."""
    wanted = [_compiled(phrase) for phrase in phrases]
    return next((s for s in _sentences(parts) if any(w.search(s.sentence) for w in wanted)), None)


def leaving_out(parts: Iterable[DocstringPart], what: str) -> Statement | None:
    """The first sentence that says of an option, or of a dtype, that it is left out or restricted."""
    wanted = [_compiled(phrase) for phrase in spellings(what)]
    for said in _sentences(parts) if wanted else ():
        named = all(w.search(said.sentence) for w in wanted) and not DEFAULTS.fullmatch(said.sentence)
        if named and LEFT_OUT.search(said.sentence):
            return said
    return None


def spellings(what: str) -> list[str]:
    """A pattern for each thing that ``what`` names: options, dtypes; for any other word, its letters."""
    names = [name for name in re.findall(r"[^\W\d][\w.-]*", what) if name.lower() in SPELLINGS]
    found = [SPELLINGS[name.lower()] + (f"|{HALF}" if name.endswith("float16") else "") for name in names]
    if found or not (name := re.match(r"[^\W\d]\w*", what)):
        return found
    return [r"[\W_]?".join(map(re.escape, re.split(r"[\W_]+", name[0])))] if len(name[0]) > 2 else []


def _compiled(phrase: str) -> re.Pattern[str]:
    try:
        return re.compile(rf"(?<!\w)(?:{phrase})", re.IGNORECASE)
    except re.error:
        return re.compile(re.escape(phrase), re.IGNORECASE)


def _sentences(parts: Iterable[DocstringPart]) -> Iterator[Statement]:
    """Every sentence that says something; a paragraph ends one, and so does a heading or an item of a list."""
    for part in parts:
        for block in re.finditer(r"\S.*?(?=\n\s*\n|\n\s*[-*:] |\Z)", part.text, re.DOTALL):
            for found in re.finditer(r"\S.*?(?:[.!?](?=\s)|\Z)", block[0], re.DOTALL):
                words = " ".join(found[0].split())
                line = part.text.count("\n", 0, block.start() + found.start())
                place = f"{part.alias}:L{part.line + line}" if part.line else part.alias
                if words and not SILENCE.search(words):
                    yield Statement(words, place)
