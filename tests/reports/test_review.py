"""The review: its parts, its order, valid CommonMark, and nothing a subject says can break it."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from reports import facts, text
from reports.judge.judgement import judge
from reports.model import Audit, PriorFinding, Witness
from reports.render import html, markdown, sarif
from reports.render.console import Console
from reports.render.review import review as arranged
from tests.reports.runs import FORWARD, HERE, claim, declaration, diagnosis, no_mode, prior, run

HOSTILE = {
    "markdown": "**bold** _it_ [a](http://x) ![i](http://y) # h\n\n- item\n> q\n---\n| a | b |",
    "fences": "```\n````\n# out\n~~~",
    "ticks": "a `code` b `` c ` d",
    "html": "<script>alert(1)</script><img src=x onerror=alert(1)> &lt; <!-- --> <![CDATA[",
    "ansi": "\x1b[31mred\x1b[0m \x1b]8;;http://x\x07link \x9b31m \x07\x00\x7f",
    "bidi": "\u202eabc\u202c \u2066x\u2069 \u200b\u200f\ufeff",
    "lines": "a\r\nb\u2028c\u2029d\x0be\x0cf\x85g",
    "jinja": "{{ 7 * 7 }} {% raw %} {#",
    "rich": "[bold red]x[/] [link=http://x]y[/link]",
    "surrogate": "\ud800 \udfff",
    "pipes": "a|b||c `x|y`",
    "leading": "1. one",
    "setext": "===",
    "definition": "[a]: http://x",
}


def audit(words: str = "", **more: object) -> Audit:
    """An audit in which everything that a subject can influence is ``words``."""
    known = PriorFinding("P1", words or "quoted", checks=(FORWARD,))
    case = Witness(
        {"in": 2, "state": words or "far"}, words or "output", words or "1", words or "2", words, words
    )
    claims = (
        claim(FORWARD, "delora", outcome="fail", witness=case, diagnosis=diagnosis()),
        claim(FORWARD, "delora", "paper", outcome="fail", witness=case),
        claim("init.identity", "delora", outcome="error", reason=words or "raised"),
        claim("save_load.round_trip", "delora", outcome="unverified", reason=words or "not synced"),
        claim("dropout.active", "delora", outcome="not_applicable", reason=words or "no dropout"),
        claim("dtype.output", "delora", outcome="declared"),
        claim(FORWARD, "lora"),
    )
    declared = (
        declaration("dtype.output", "delora", reason=words or "by design", words=(words,)),
        declaration("training.sgd", "lora", reason=words or "old", occurred=False),
    )
    given = {"declarations": declared, "docstring": words, **more}
    return judge(run(*claims, **given), prior("delora", "Partial", known))  # type: ignore[arg-type]


def tokens(review: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(review)


def headings(review: str) -> list[tuple[str, str]]:
    parsed = tokens(review)
    return [(t.tag, parsed[n + 1].content) for n, t in enumerate(parsed) if t.type == "heading_open"]


def test_the_parts_stand_in_order():
    review = markdown.render(audit())
    assert [h for tag, h in headings(review) if tag in ("h2", "h3")] == [
        "LoRA: Faithful",
        *("What the references do", "The subject", "Differences", "The prior review", "Verdict"),
        "DeLoRA: Buggy (was Partial)",
        *("What the references do", "The subject", "Differences", "The prior review", "Verdict"),
        "All variants",
        "Stale declarations",
        "What to fix next",
    ]
    assert "| variant | prior verdict | new verdict | new bugs found | doc gaps |" in review


def test_a_bug_says_everything():
    review = markdown.render(audit())
    for words in (
        "**[BUG] D2 (critical, forward equation)** The update is scaled by one number",
        "*Failure mode:* Every input feature is scaled alike.",
        "*Equals:* `delora.scalar_norm` of the mistakes catalogue, in 3 of 3 cases.",
        "*Smallest case:* in 2, state far: output: expected 1, got 2; ratio 2.94e6, threshold 30.",
        "*Against:* PEFT; none agrees; not asked, or without an answer: author and equation.",
        "*To mend:* follow this quantity through the code: output has to be 1 at the smallest case, and is 2.",
        "`tests/reports/sample.py:L7`",
        "> delora · Partial · quoted",
    ):
        assert words in review
    assert "nothing in the mistakes catalogue" in markdown.render(judge(run(claim(FORWARD, outcome="fail"))))


def test_a_fix_is_the_remedy_where_one_is_known():
    def fix(**more: str) -> str:
        failing = claim(FORWARD, outcome="fail", diagnosis=diagnosis(**more))
        return markdown.render(judge(run(failing))).partition("## What to fix next")[2]

    assert "contribution has to be 0.731 at the smallest case, and is 1.034" in fix().lower()
    assert "at `tests/reports/sample.py:l7`" in fix().lower()
    assert "divide by the norm of each row" in fix(remedy="divide by the norm of each row").lower()
    assert "compute what the references compute" not in fix(remedy="divide by the norm of each row").lower()


def test_a_declaration_says_which_docstrings_were_searched():
    made = run(claim("dtype.output", outcome="declared"), declarations=(declaration("dtype.*"),))
    review = markdown.render(judge(made))
    assert (
        'its docstring says so ("by design"); searched: the docstring of the subject\'s class and' in review
    )
    assert "`Sample.forward` in tests/reports/sample.py" in review


def test_the_glance_comes_first():
    review = markdown.render(audit())
    places = [
        review.index(words)
        for words in ("| variant | verdict |", "**First to fix**", "**How to read this**", "**Where to find what**",
                      '<a id="variant-lora">', "## All variants", "## What to fix next")
    ]  # fmt: skip
    assert places == sorted(places)
    legend = review[places[2] : places[3]]
    assert legend.count("\n- ") == 6
    page = html.render(audit())
    assert page.index("First to fix") < page.index("Contents") < page.index('<section id="variant-lora"')


def test_a_section_is_headed_by_its_verdict_and_why():
    lines = markdown.render(audit()).splitlines()
    start = lines.index("## DeLoRA: Buggy (was Partial)")
    assert lines[start + 2] == "Raised (D1)."


def test_quotes_and_claims_are_folded():
    review = markdown.render(audit())
    depth, shown = 0, []
    for line in review.splitlines():
        depth += line.strip().startswith("<details>") - line.strip().startswith("</details>")
        if depth == 0 and (line.strip().startswith("```") or line.startswith("| `")):
            shown.append(line)
    assert depth == 0
    assert shown == []
    assert "1 claims hold: forward equation 1." in review


def test_what_is_not_offered_is_told_apart_from_what_does_not_arise():
    lacking = {
        "outcome": "not_applicable",
        "reason": "x offers no save",
        "cause": "not_offered",
        "detail": "save",
    }
    outside = claim("dropout.active", outcome="not_applicable", reason="no dropout", cause="outside")
    made = judge(run(claim(FORWARD), claim("save_load.round_trip", **lacking), outside))
    review = markdown.render(made)
    assert "1 of 1 claims verified, 1 not offered, 1 not applicable" in review
    assert "- Not offered (x offers no save): `save_load.round_trip[lora-peft]`." in review
    stream = io.StringIO()
    Console(stream).summary(made)
    assert "not offered" in stream.getvalue()


def test_a_warning_and_a_documented_choice_are_quoted(tmp_path):
    (tmp_path / "mine.py").write_text(
        'class Mine:\n    """Says more.\n\n    The gradient flows through the norm here.\n    """\n',
        encoding="utf-8",
    )
    other = diagnosis("dora.norm_attached", severity="major", documented_by=("flows through the norm",))
    case = Witness({"in": 2}, "output", "1", "2", heard=("dropout is ignored",))
    made = with_sources(
        run(claim("step0.gradients", outcome="fail", diagnosis=other, witness=case)),
        {("lora", "forward"): (tmp_path / "mine.py", "Mine")},
    )
    review = markdown.render(judge(made))
    assert (
        '*Documented:* the subject\'s docstring says so: "The gradient flows through the norm here." (`mine.py:L4`).'
        in review
    )
    assert '*The subject says:* "dropout is ignored".' in review
    assert "[OK-doc] D1 (major, step-0 gradient)" in review


def test_a_documented_choice_survives_being_written_and_judged_again(tmp_path):
    (tmp_path / "mine.py").write_text(
        '"""Doc.\n\nThe gradient flows through the norm."""\n', encoding="utf-8"
    )
    other = diagnosis("dora.norm_attached", severity="major", documented_by=("flows through the norm",))
    failing = claim("step0.gradients", outcome="fail", diagnosis=other)
    made = judge(with_sources(run(failing), {("lora", "forward"): (tmp_path / "mine.py", "<module>")}))
    assert judge(made.run).findings == made.findings
    assert "(`mine.py:L3`)" in made.findings[0].stated


def test_no_instruction_says_only_to_follow_the_references():
    claims = [claim(c, outcome="fail") for c in run().checks]
    for words in [d.what for d in arranged(judge(run(*claims))).fixes]:
        assert "what the references compute" not in words
        assert "at the smallest case" in words


def test_quotes_are_at_most_ten_lines_and_as_they_stand_in_the_file():
    review = markdown.render(audit())
    fences = [t for t in tokens(review) if t.type == "fence"]
    assert len(fences) > 10
    assert all(len(t.content.splitlines()) <= 10 for t in fences)
    assert "    def forward(self, x):\n        return 2 * x\n" in [t.content for t in fences]


def test_the_fix_list_is_short_and_ordered():
    claims = [
        claim(c, v, outcome="fail")
        for v in ("lora", "dora", "ia3", "delora")
        for c in (FORWARD, "dropout.active", "dtype.output")
    ]
    review = markdown.render(judge(run(*claims)))
    fixes = review.partition("## What to fix next")[2].strip().splitlines()
    assert len(fixes) <= 5
    assert fixes[0].startswith(r"- **LoRA, DoRA, (IA)³ and DeLoRA** (critical, ")
    assert "(major, " in fixes[1]
    assert "Nothing." in markdown.render(judge(run())).partition("## What to fix next")[2]


@pytest.mark.parametrize("words", HOSTILE.values(), ids=HOSTILE.keys())
def test_nothing_breaks_the_markdown(words):
    calm, wild = markdown.render(audit("calm")), markdown.render(audit(words))
    assert [h for _, h in headings(wild)] == [h for _, h in headings(calm)]
    assert shape(wild) == shape(calm)
    assert all(c.isprintable() or c == "\n" for c in wild)
    wild.encode("utf-8")


def shape(review: str) -> list[str]:
    """The blocks of a review, and what is active inside them."""
    parsed = tokens(review)
    inline = [c for t in parsed if t.type == "inline" for c in t.children or ()]
    active = [c.type for c in inline if c.type in ("link_open", "image", "html_inline")]
    return [t.type for t in parsed if t.type != "inline"] + active


@pytest.mark.parametrize("words", HOSTILE.values(), ids=HOSTILE.keys())
def test_nothing_breaks_the_html(words):
    calm, wild = (Tags(html.render(a)) for a in (audit("calm"), audit(words)))
    assert without_code(wild.tags) == without_code(calm.tags)
    assert "<script" not in wild.source
    assert all(c.isprintable() or c == "\n" for c in wild.source)


def without_code(tags: list[str]) -> list[str]:
    return [t for t in tags if t != "code"]  # words between backticks are set as code


class Tags(HTMLParser):
    """The tags of a page, in order."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source, self.tags = source, []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        assert not any(name.startswith("on") for name, _ in attrs)
        self.tags.append(tag)


@pytest.mark.parametrize("words", HOSTILE.values(), ids=HOSTILE.keys())
def test_nothing_reaches_the_terminal_raw(words):
    stream = io.StringIO()
    console = Console(stream, total=3)
    made = audit(words)
    for one in made.run.claims:
        console.claim_done(one)
    console.summary(made)
    assert all(c.isprintable() or c == "\n" for c in stream.getvalue())


@pytest.mark.parametrize("words", HOSTILE.values(), ids=HOSTILE.keys())
def test_nothing_breaks_sarif(words):
    log = json.loads(sarif.render(audit(words)))
    (ran,) = log["runs"]
    rules = [r["id"] for r in ran["tool"]["driver"]["rules"]]
    for result in ran["results"]:
        assert rules[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] in ("error", "warning", "note", "none")
        assert result["message"]["text"].isprintable()
    assert ran["results"][0]["locations"][0]["physicalLocation"] == {
        "artifactLocation": {"uri": "tests/reports/sample.py", "uriBaseId": "%SRCROOT%"},
        "region": {"startLine": 7, "endLine": 8},
    }


def test_a_hostile_source_is_quoted_safely(tmp_path):
    body = '        """```\n        # out\n        ````</code></pre><script>\n        \x1b[31m\u202e"""\n'
    source = f"class Evil:\n    def forward(self, x):\n{body}"
    (tmp_path / "evil`|<b>.py").write_text(source, encoding="utf-8")
    made = run(claim(FORWARD, outcome="fail"))
    sources = {("lora", "forward"): (tmp_path / "evil`|<b>.py", "Evil.forward")}
    made = judge(with_sources(made, sources))
    review = markdown.render(made)
    quotes = [t for t in tokens(review) if t.type == "fence" and "# out" in t.content]
    assert len(quotes) == 2  # among the subject's lines, and beside the difference
    assert all("\\x1b[31m\\u202e" in quote.content for quote in quotes)
    assert "<script" not in html.render(made)


def with_sources(made, sources):
    return dataclasses.replace(made, subject=dataclasses.replace(made.subject, sources=sources))


def test_sources_that_are_not_there_are_said(tmp_path):
    sources = {
        ("lora", "forward"): (tmp_path / "gone.py", "f"),
        ("lora", "init"): (HERE / "sample.py", "Other.f"),
    }
    review = markdown.render(judge(with_sources(run(), sources)))
    assert "gone.py cannot be read" in review
    assert "`Other.f` was not found in tests/reports/sample.py" in review
    assert str(tmp_path) not in review


def test_paths_of_this_machine_are_not_shown():
    assert str(HERE) not in markdown.render(audit())


@pytest.mark.parametrize("words", HOSTILE.values(), ids=HOSTILE.keys())
def test_escaped_text_reads_as_it_was(words):
    parsed = MarkdownIt("commonmark").parse("x " + text.plain(words))
    shown = "".join(c.content for t in parsed if t.type == "inline" for c in t.children or ())
    assert shown == "x " + text.one_line(words)


def test_links_lead_to_pages_only():
    assert text.safe_url("javascript:alert(1)") is None
    assert text.safe_url('https://x/a b>c"') == "https://x/a%20b%3Ec%22"


def test_the_html_page_loads_nothing():
    page = html.render(audit())
    assert not re.search(r"<(script|link|iframe|img|object)\b", page)
    assert "@import" not in page
    assert "url(" not in page


def test_no_upstream_line_is_committed_here():
    assert "kaiming_uniform_" not in Path(facts.__file__).with_name("facts.toml").read_text()


def terminal(made: Audit, **more: object) -> str:
    stream = io.StringIO()
    console = Console(stream, **more)  # type: ignore[arg-type]
    console.failures(made.run.claims)
    console.summary(made)
    return stream.getvalue()


def test_the_terminal_has_a_line_for_every_failure_then_the_table_then_the_first_fix():
    lines = terminal(audit()).splitlines()
    failing = [line for line in lines if line.startswith(("fail ", "error ", "unverified "))]
    assert len(failing) == 4
    assert any(line.startswith(f"fail {FORWARD}[delora-peft]: ") for line in failing)
    assert lines.index(failing[-1]) < next(n for n, line in enumerate(lines) if line.startswith("variant"))
    assert "first to fix: DeLoRA D1:" in "".join(lines[-4:])


def test_nothing_is_judged_of_a_run_that_ended_before_it_began():
    made = judge(dataclasses.replace(run(), claims=()))
    assert (made.findings, made.verdicts) == ((), {})
    assert "## All variants" in markdown.render(made)


def test_a_missing_mode_is_held_against_the_references_that_have_it():
    """Those that are asked for it: the equation knows no defaults. What is the equation's, all of them have."""
    of_peft = no_mode("targets.default", option="default targets")
    of_all = dataclasses.replace(no_mode("forward.modes", option="a bias"), oracle="paper")
    told = [markdown.render(judge(run(claim(FORWARD), one))) for one in (of_peft, of_all)]
    assert "PEFT, which has it" in told[0]
    assert "which have it" not in told[0]
    assert "PEFT and equation, which have it" in told[1]
