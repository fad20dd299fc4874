"""On another kind of layer: a fault of the method everywhere is one finding, one of that kind alone another."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

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


class RootOnConvolutions(Library):
    """On convolutions alone the update is divided by √r."""

    class layer(LowRank):  # noqa: N801
        """α/√r on convolutions."""

        def path_conv2d(self, x: Tensor) -> Tensor:
            return super().path_conv2d(x) * self.r**0.5


class MergesEmbeddingsUnscaled(Library):
    """What embeddings are merged into has the update without α/r."""

    class layer(LowRank):  # noqa: N801
        """ΔW = BA."""

        def fold(self, plain: nn.Module, update: Tensor) -> None:
            super().fold(plain, update / self.s if self.kind == "embedding" else update)


@pytest.mark.parametrize(
    ("subject", "said"),
    [
        (RootOnConvolutions(), "on a convolution, and not on a linear layer, "),
        (MergesEmbeddingsUnscaled(), "in what an embedding is merged into, and not in what it computes, "),
    ],
)
def test_a_catalogued_mistake_on_one_kind_is_named(subject: Library, said: str) -> None:
    """By what the linear layer has not, and what is the same at another rank and alpha."""
    found = audit(
        subject,
        ["lora"],
        checks=lambda c: c.id.startswith(("layers.conv2d", "layers.merge_emb")),
        profile=QUICK,
    )
    (bug,) = [f for f in found.findings if f.tag == "BUG"]
    assert bug.title.startswith(said)
    assert "α" in bug.title
