"""What a subject does not take is told once, and everything else is asked without it: a dtype, a bias."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from harness.compare.offered import why_not
from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot, Unsupported
from tests.life_table import TWELVE
from tests.subjects import kinds, lives, wrapped
from tests.subjects.judged import audit


class Float32Kinds(kinds.LowRank):
    """Its factors are float32 whatever the layer is."""

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32


class OnKinds(kinds.Library):
    """Convolutions in float32; it merges nothing."""

    dtypes = frozenset({"float32"})
    layers = frozenset({"linear", "conv2d"})
    layer = Float32Kinds

    def merge(self, adapted: Adapted) -> nn.Module:  # type: ignore[override]
        return Implementation.merge(self, adapted)


class WrongOnKinds(OnKinds):
    """The same, and wrong on every convolution."""

    class Layer(Float32Kinds):
        def path_conv2d(self, x: Tensor) -> Tensor:
            return 2 * super().path_conv2d(x)

    layer = Layer


class Float32Life(lives.Layer):
    """It answers float32 alone, a copy of it too."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise TypeError(f"expected float32, got {x.dtype}")
        return super().forward(x)


class OnLives(lives.Library):
    """A library whose layers are float32 and have no bias."""

    variants = frozenset({"lora"})
    dtypes = frozenset({"float32"})
    layer = Float32Life

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        if base.bias is not None:
            raise Unsupported("no bias")
        return super().adapt(base, spec)


class WrongOnLives(OnLives):
    """The same, and folding in leaves the adapter on top."""

    class Layer(Float32Life):
        def forward(self, x: Tensor) -> Tensor:
            return self.adapted(x) if self.active else self.base(x)

    layer = Layer


class Gate(nn.Module):
    """y ⊙ l for x of three dimensions; rows (n, in) come out as (n, n, out)."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.l = nn.Parameter(torch.ones(base.out_features, dtype=base.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        return y * self.l.view(1, 1, -1).repeat(x.shape[0], 1, 1)


class InThreeDimensions(Implementation):
    """A library that was written for (batch, tokens, features)."""

    name, version = "three", "1"
    variants = frozenset({"ia3"})

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        if spec.feedforward:
            raise Unsupported("outputs alone")
        layer = Gate(base)
        return Adapted(layer, {"l": Slot(layer.l)})


def test_a_number_of_dimensions_that_is_answered_in_another_shape_is_one_finding() -> None:
    """The weight is read off, and the shapes are compared, in the dimensions that are taken."""
    wanted = ("forward.effective_weight", "forward.batch_shapes", "forward.base_kept", "forward.inputs")
    found = audit(InThreeDimensions(), ["ia3"], checks=lambda c: c.id in wanted, profile=TWELVE)
    assert {c.check: c.outcome for c in found.run.claims if c.outcome != "pass"} == {"forward.inputs": "fail"}


def test_what_is_recorded_in_dimensions_that_are_not_taken_is_not_asked() -> None:
    """The author's cases have an x of one dimension, which is one finding, with the other dimensions."""
    wanted = ("forward.random_parameters", "forward.one_dimension", "forward.inputs")
    found = audit(InThreeDimensions(), ["ia3"], checks=lambda c: c.id in wanted, oracles=["author", "paper"])
    assert all(c.outcome != "error" for c in found.run.claims)
    (finding,) = found.findings
    assert {claim.partition("[")[0] for claim in finding.claims} == {
        "forward.inputs",
        "forward.one_dimension",
    }


class RowsAlone(wrapped.Lora):
    """It refuses what is no matrix."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 2:
            raise ValueError(f"x has {x.dim()} dimensions, expected 2")
        return super().forward(x)


class SaysSo(wrapped.Library):
    """The library of such layers, whose subject says what x it takes."""

    inputs = frozenset({2})


def test_what_the_subject_says_that_it_does_not_take_is_no_finding_in_numbers() -> None:
    found = audit(SaysSo({"lora": RowsAlone}), ["lora"], checks=lambda c: c.info.aspect == "forward")
    assert {
        c.check: c.outcome for c in found.run.claims if c.outcome in ("fail", "error", "unverified")
    } == {}
    assert [f.title for f in found.findings if f.tag == "BUG"] == []


@pytest.mark.parametrize(("subject", "aspect"), [(OnKinds(), "layers"), (OnLives(), "lifecycle")])
def test_nothing_is_asked_in_what_is_not_taken(subject: Implementation, aspect: str) -> None:
    """No exception of a dtype that was not promised, nothing left unverified, no word of the bias."""
    found = audit(subject, ["lora"], checks=lambda check: check.info.aspect == aspect, profile=TWELVE)
    bad = {c.id: c.reason for c in found.run.claims if c.outcome not in ("pass", "not_applicable")}
    assert bad == {}
    assert not any("bias" in (c.reason or "") for c in found.run.claims)
    assert any(c.outcome == "pass" for c in found.run.claims)


@pytest.mark.parametrize(
    ("subject", "check"), [(WrongOnKinds(), "layers.conv2d"), (WrongOnLives(), "lifecycle.merged")]
)
def test_what_is_wrong_there_is_found(subject: Implementation, check: str) -> None:
    """In the dtype, and without the bias, that it takes."""
    found = audit(subject, ["lora"], checks=lambda c: c.id == check, profile=TWELVE)
    assert [c.outcome for c in found.run.claims] == ["fail"]
    assert "float32" in str(found.run.claims[0].witness)


def test_a_missing_bias_is_no_missing_method() -> None:
    """Methods are looked for on a layer that the subject adapts."""
    assert why_not(OnLives(), AdapterSpec("lora"), "save") == ""
    assert why_not(OnLives(), AdapterSpec("lora"), "detach") == ""
