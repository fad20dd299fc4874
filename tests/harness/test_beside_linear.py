"""On another kind of layer: a fault of the method everywhere is one finding, one of that kind alone another."""

from __future__ import annotations

from torch import Tensor

from harness.engine.checks import Check
from tests.subjects.judged import QUICK, audit
from tests.subjects.kinds import Library, LowRank


def asked(check: Check) -> bool:
    return (
        check.info.aspect in ("layers", "forward") and check.id != "layers.save_load"
    )  # this one offers no load


class TwiceTheUpdate(Library):
    """The update is twice the equation's, on every kind of layer."""

    class layer(LowRank):  # noqa: N801
        """With a factor of two."""

        def __init__(self, *given: object) -> None:
            super().__init__(*given)  # type: ignore[arg-type]
            self.s *= 2


class AndAnotherOnConvolutions(Library):
    """The same, and three times that on convolutions."""

    class layer(TwiceTheUpdate.layer):  # noqa: N801
        """With a factor of six on convolutions."""

        def path_conv2d(self, x: Tensor) -> Tensor:
            return 3 * super().path_conv2d(x)


def bugs(subject: Library) -> list[str]:
    found = audit(subject, ["lora"], checks=asked, profile=QUICK)
    return [f.mistake or f.claims[0].split("[")[0] for f in found.findings if f.tag == "BUG"]


def test_a_fault_of_the_method_is_told_once() -> None:
    """What the linear layer does, too, is no fault of the kind."""
    assert len(bugs(TwiceTheUpdate())) == 1


def test_a_kinds_own_fault_is_not_hidden_by_it() -> None:
    """The convolution computes something else than the linear layer does of the same matrices."""
    found = bugs(AndAnotherOnConvolutions())
    assert len(found) == 2
    assert "layers.conv2d" in found
