"""An adapted layer as the checks handle it: canonical values in and out, calls that cannot crash the run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from harness import clock
from harness.compare.blame import Place, is_of_the_audit, place_of
from harness.compare.ear import is_silent, speaks
from harness.compare.isolation import ClaimTimeout, SubjectDied
from harness.compare.outcome import without_numbers
from harness.compare.refusals import complaint
from oracles.implementation import Adapted, Implementation, Slot, Unsupported

# Who counts as an oracle when time is charged; everybody else is the subject.
BUCKETS: dict[str, str] = {}
# The implementations by name, so that a frame can be told to be the wrapper's or the library's.
SUBJECTS: dict[str, Implementation] = {}


FOLDER = re.compile(r"[^\s'\"(\[=]*/audit-[a-z0-9_]{8}/")
MOST_SAID = 300  # characters of an exception
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,16}\b")


class SubjectRaised(Exception):
    """The implementation ``who`` raised where it should have answered; the text is the finding.

    ``kind``: what crashes of one kind share, whatever they were tried on: the type, and where it arose or, where that
    is not known, the method and the words without their numbers. ``place``: where in the subject.
    """

    def __init__(self, who: str, said: str, kind: str, place: Place | None = None) -> None:
        self.who, self.kind, self.place = who, without_numbers(kind) if place is None else kind, place
        self.case: Any = None  # what it was tried on, where that is not the claim's case
        super().__init__(f"{who} {said}" + (f" (at {place})" if place else ""))

    @property
    def is_of_the_wrapper(self) -> bool:
        """Whether the subject file itself raised, and not the library behind it."""
        return self.place is not None and self.place.wrapper


class BadAnswer(Exception):
    """The implementation answered with something that is no answer (None, a wrong shape, NaN).

    ``who``: its name, where another than the subject may have done so.
    """

    who: str | None = None

    def of(self, who: str) -> BadAnswer:
        """This, with whose answer it was."""
        self.who = who
        return self


class WrongType(BadAnswer):
    """A method of the interface answered with another type than the interface names: the subject file's mistake."""


# Not turned into a finding: what the interface allows, what is one already, the user's, and the audit's own.
PASSED_ON = (Unsupported, SubjectRaised, BadAnswer, KeyboardInterrupt, ClaimTimeout, SubjectDied)


class answering:  # noqa: N801 - used as a context manager
    """Exceptions of the implementation become :class:`SubjectRaised`; Unsupported passes.

    ``what`` it does, ``of`` which of many like things. No generator: the audit enters half a million of them.
    """

    def __init__(self, who: str, what: str, of: str = "") -> None:
        self.who, self.what, self.of = who, what, of
        self.charged = clock.charge(BUCKETS.get(who, "subject"))

    def __enter__(self) -> None:
        self.charged.__enter__()
        speaks(self.who)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        is_silent()
        self.charged.__exit__(kind, error, trace)
        if error is None or isinstance(error, PASSED_ON) or is_of_the_audit(error):
            return
        if isinstance(error, SystemExit):
            where = f"{self.what} of {self.of}" if self.of else self.what
            said = f"called sys.exit({error.code!r}) in {where}"
            raise SubjectRaised(self.who, said, f"sys.exit in {self.what}") from error
        raise _raised(self.who, error, self.what, self.of) from error


_SITUATION: list[str] = []


@contextmanager
def situation(words: str) -> Iterator[None]:
    """What is raised within is said to have been raised so: "under autocast", "where B alone trains"."""
    _SITUATION.append(words)
    try:
        yield
    finally:
        _SITUATION.pop()


def _raised(who: str, error: BaseException, what: str, of: str) -> SubjectRaised:
    where = " ".join([f"{what} of {of}" if of else what, *_SITUATION])
    name, words, place = type(error).__name__, said(error), place_of(error, SUBJECTS.get(who))
    of_torch = complaint(words)
    kind = f"{name} at {place}{of_torch}" if place else name + (of_torch or f" in {what}: {words}")
    return SubjectRaised(who, f"raised {name} in {where}" + (f": {words}" if words else ""), kind, place)


def said(error: BaseException) -> str:
    """The exception's own words, in one bounded line; a note where it has none that can be read.

    What is another in every run, the audit's temporary folders and addresses of objects, is left out: the same
    subject gets the same sentence.
    """
    try:
        text = " ".join(str(error).split())
    except Exception:
        return "(its text cannot be had)"
    text = COLOURS.sub("", ADDRESS.sub("0x...", FOLDER.sub("", text)))
    return text if len(text) <= MOST_SAID else f"{text[:MOST_SAID].rpartition(' ')[0]} …"


class Layer:
    """An :class:`Adapted` with the name of who made it."""

    def __init__(self, adapted: Adapted, who: str, slots: Mapping[str, Slot] | None = None) -> None:
        self.adapted, self.who = adapted, who
        self.slots = dict(adapted.slots) if slots is None else slots

    @property
    def module(self) -> nn.Module:
        return self.adapted.module

    @property
    def names(self) -> list[str]:
        """The slots' names, canonical or not, in the implementation's order."""
        return list(self.slots)

    def raw(self, name: str) -> Tensor:
        """The live tensor behind a slot, in the implementation's own layout."""
        return self.slots[name].tensor

    def view(self, name: str) -> Tensor:
        """The slot's value in the canonical layout: a view of the live tensor, or what its ``read`` makes of it."""
        with answering(self.who, f"reading slot {name!r}"):
            return self.slots[name].canonical()

    def value(self, name: str) -> Tensor:
        """A copy of a slot's value in float64, canonical layout."""
        return self.view(name).detach().double().clone()

    def values(self) -> dict[str, Tensor]:
        """All slots' values."""
        return {name: self.value(name) for name in self.names}

    def write(self, values: Mapping[str, Tensor]) -> None:
        """Write canonical values into the slots that exist with the same shape; the others keep theirs."""
        for name, value in values.items():
            if name in self.slots and self.view(name).shape == value.shape:
                with answering(self.who, f"writing slot {name!r}"):
                    self.slots[name].put(value)

    def gradient(self, name: str) -> Tensor:
        """∂L/∂slot in float64, canonical layout; zeros where autograd left None."""
        with answering(self.who, f"the gradient of slot {name!r}"):
            found = self.slots[name].canonical_gradient()
        if found is None:
            return torch.zeros_like(self.view(name), dtype=torch.float64)
        return found.detach().double().clone()

    def clear_gradients(self) -> None:
        """Forget every accumulated gradient of the slots and of the module."""
        for tensor in [self.raw(name) for name in self.names] + list(self.module.parameters()):
            tensor.grad = None

    def train(self, mode: bool = True) -> None:
        """Put the module into training mode, or into evaluation mode."""
        with answering(self.who, f"module.train({mode})" if mode else "module.eval()"):
            self.module.train(mode) if mode else self.module.eval()

    def __call__(self, x: Tensor) -> Tensor:
        """``module(x)``, checked to be a tensor of shape (*batch, out)."""
        with answering(self.who, f"module(x) with x of shape {tuple(x.shape)}, {x.dtype}"):
            y: Any = self.module(x)
        if isinstance(y, Tensor) and y.device.type == "meta":
            raise BadAnswer(f"{self.who}: module(x) returned a tensor on the meta device, without values")
        if not isinstance(y, Tensor):
            raise BadAnswer(f"{self.who}: module(x) returned {type(y).__name__}, expected a Tensor")
        return y


def adapt(who: Implementation, base: nn.Linear, spec: Any) -> Layer:
    """``who.adapt``, checked to return an Adapted."""
    with answering(who.name, "adapt"):
        adapted: Any = who.adapt(base, spec)
    return as_layer(adapted, who, "adapt")


def as_layer(adapted: Any, who: Implementation, method: str) -> Layer:
    """``adapted`` as a Layer. Raises WrongType if it is no Adapted."""
    # Duck-typed: a subject file may have imported the interface under another module name.
    with answering(who.name, f"the slots of {method}'s answer"):
        slots = dict(getattr(adapted, "slots", None) or {})
    module = getattr(adapted, "module", None)
    if module is None:
        raise WrongType(f"{who.name}: {method} returned {type(adapted).__name__}, expected an Adapted")
    for name, slot in slots.items():
        if not (hasattr(slot, "tensor") and callable(getattr(slot, "view", None))) or isinstance(
            slot, Tensor
        ):
            raise WrongType(f"{who.name}: slot {name!r} is a {type(slot).__name__}, expected a Slot")
    return Layer(adapted, who.name, slots)
