"""Whether an exception is a refusal, in the library's own words, or a crash that nobody meant.

A library that cannot do something says so: it raises NotImplementedError or ValueError, say, with a sentence of its
own. What torch or the interpreter raises in its code (sizes that do not fit, an attribute that is not there, a wrong
number of arguments) is no answer to the question.
"""

from __future__ import annotations

import dis
import os
import re

from harness.compare.blame import TORCH, innermost
from oracles.implementation import Unsupported

# Never said on purpose, not even by a statement: a name, an entry or an attribute that is not there.
CRASHES = (AttributeError, LookupError, NameError, ArithmeticError)
# Of what torch complains, by its words. Dtypes come first: such a sentence speaks of "mat1 and mat2", too.
DTYPES = "dtypes that do not fit"
COMPLAINTS = {
    DTYPES: r"same dtype|dtypes match|expected scalar type|not implemented for '|"
    r"type \(.{1,40}\) and (weight|bias) type \(.{1,40}\) should be the same",
    "sizes that do not fit": r"must match|mat1 and mat2|size mismatch|shape '|not be broadcast|broadcastable|"
    r"expected input\[",
    "in place": r"in-place operation|modified by an inplace",
    "the graph": r"does(n't| not) require grad|backward through the graph",
}
OF_PYTHON = (
    r"unsupported operand|positional argument|unexpected keyword|required keyword|object is not|has no len|"
    r"cannot assign '|must be .*, not |values to unpack"
)
# For exceptions from another process, whose statement is not known.
NOT_OWN_WORDS = re.compile("|".join((*COMPLAINTS.values(), OF_PYTHON)), re.IGNORECASE)


def is_crash(why: BaseException) -> bool:
    """Whether what a call ended in is no refusal. ``why``: what the audit made of it, or the exception itself."""
    error = why.__cause__ if isinstance(why.__cause__, BaseException) and hasattr(why, "who") else why
    if isinstance(error, Unsupported | ImportError):  # what is not installed is not offered
        return False
    if isinstance(error, CRASHES):
        return True
    own = _by_a_statement(error)
    return not own if own is not None else NOT_OWN_WORDS.search(_words(error)) is not None


def complaint(words: str) -> str:
    """Which of torch's complaints it is, in brackets: two of them about one line have two causes. "" if it is none."""
    found = (name for name, told in COMPLAINTS.items() if re.search(told, words, re.IGNORECASE))
    return next((f" ({name})" for name in found), "")


def _words(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return ""


def _by_a_statement(error: BaseException) -> bool | None:
    """Whether a ``raise`` or an ``assert`` outside torch raised it; None where that cannot be told."""
    trace = innermost(error)
    if trace is None or getattr(error, "frames", None) is not None:
        return None
    code = trace.tb_frame.f_code
    if code.co_filename.startswith((TORCH + os.sep, "<")):
        return False
    operation = dis.opname[code.co_code[trace.tb_lasti]] if trace.tb_lasti >= 0 else ""
    return operation.startswith(("RAISE", "RERAISE"))
