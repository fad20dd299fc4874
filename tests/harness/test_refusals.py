"""What is a refusal in a library's own words, and what is a crash."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from harness.compare.layer import SubjectRaised, answering
from harness.compare.refusals import is_crash
from harness.subjects.remote.messages import exception_of
from oracles.implementation import Unsupported


def _says(error: BaseException) -> Callable[[], object]:
    def refuse() -> object:
        raise error

    return refuse


def _asserts() -> None:
    assert torch.zeros(1).numel() == 2, "two entries are needed"


REFUSALS = {
    "ValueError": _says(ValueError("Embedding is not supported")),
    "NotImplementedError": _says(NotImplementedError("merging into groups")),
    "RuntimeError": _says(RuntimeError("unmerge first")),
    "TypeError": _says(TypeError("Conv1D is no layer that can be adapted")),
    "Unsupported": _says(Unsupported("no merge")),
    "ImportError": lambda: __import__("a_library_that_is_not_installed"),
    "assert": _asserts,
}
CRASHES = {
    "sizes": lambda: torch.zeros(2, 3) @ torch.zeros(2, 3),
    "broadcast": lambda: torch.zeros(2) + torch.zeros(3),
    "attribute": lambda: nn.Linear(1, 1).nowhere,
    "own attribute": _says(AttributeError("no such thing")),
    "entry": lambda: {}["A"],  # type: ignore[index]
    "index": lambda: [][1],
    "arguments": lambda: (lambda x: x)(),  # type: ignore[call-arg, misc]
    "operands": lambda: None + 1,  # type: ignore[operator]
    "torch's statement": lambda: setattr(nn.Linear(1, 1), "weight", torch.zeros(1, 1)),
    "leaf": lambda: torch.zeros(1, requires_grad=True).add_(1),
    "unpacking": lambda: dict([(1, 2, 3)]),  # type: ignore[list-item]
}


def _raised(call: Callable[[], object]) -> BaseException:
    with pytest.raises((SubjectRaised, Unsupported)) as found, answering("lib", "merge"):
        call()
    return found.value


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal(name: str) -> None:
    assert not is_crash(_raised(REFUSALS[name]))


@pytest.mark.parametrize("name", CRASHES)
def test_a_crash(name: str) -> None:
    assert is_crash(_raised(CRASHES[name]))


@pytest.mark.parametrize(
    ("kind", "text", "crash"),
    [
        ("ValueError", "Embedding is not supported", False),
        ("RuntimeError", "unmerge first", False),
        ("RuntimeError", "The size of tensor a (4) must match the size of tensor b (6)", True),
        ("TypeError", "cannot assign 'torch.FloatTensor' as parameter 'weight'", True),
        ("AttributeError", "nowhere", True),
    ],
)
def test_from_another_process_the_type_and_the_words_decide(kind: str, text: str, crash: bool) -> None:
    told = {"type": kind, "bases": [kind, "Exception"], "text": text, "frames": [["lib.py", 3, False]]}
    assert is_crash(_raised(_says(exception_of(told)))) == crash


def test_two_complaints_of_one_line_are_of_two_kinds() -> None:
    """Sizes that do not fit and an operation in place, of one line, have two causes; two sizes have one."""

    def library(x: torch.Tensor) -> torch.Tensor:
        return x.add_(torch.zeros(2))

    def kind(x: torch.Tensor) -> str:
        error = _raised(lambda: library(x))
        assert isinstance(error, SubjectRaised)
        return error.kind

    sizes, leaf = kind(torch.zeros(3)), kind(torch.zeros(2, requires_grad=True))
    assert sizes == kind(torch.zeros(4)) != leaf
