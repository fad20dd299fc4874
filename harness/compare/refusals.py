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
# Words of torch and of the interpreter, for exceptions from another process, whose statement is not known.
NOT_OWN_WORDS = re.compile(
    r"must match|mat1 and mat2|size mismatch|shape '|same dtype|expected scalar type|in-place operation|"
    r"doesn't require grad|unsupported operand|positional argument|unexpected keyword|required keyword|"
    r"object is not|has no len|cannot assign '|must be .*, not |values to unpack|not be broadcast|broadcastable",
    re.IGNORECASE,
)


def is_crash(why: BaseException) -> bool:
    """Whether what a call ended in is no refusal. ``why``: what the audit made of it, or the exception itself."""
    error = why.__cause__ if isinstance(why.__cause__, BaseException) and hasattr(why, "who") else why
    if isinstance(error, Unsupported | ImportError):  # what is not installed is not offered
        return False
    if isinstance(error, CRASHES):
        return True
    own = _by_a_statement(error)
    return not own if own is not None else NOT_OWN_WORDS.search(_words(error)) is not None


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
