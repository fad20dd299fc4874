"""What a subject does not take is told once, and everything else is asked without it: a dtype, a bias."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from harness.compare.offered import why_not
from harness.subjects.lora_lite import LoraLite
from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot, Unsupported
from tests.life_table import TWELVE
from tests.subjects import kinds, lives, wrapped
from tests.subjects.judged import QUICK, audit


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
    assert finding.title.startswith("for an x of some numbers of dimensions the output has another number")
    assert {claim.partition("[")[0] for claim in finding.claims} == {
        "forward.inputs",
        "forward.one_dimension",
    }


class InThreeDimensionsAlone(wrapped.Dora):
    """Of one output m has no dimension, an x of two comes out with three; dropout reaches the low-rank path alone."""

    def start_m(self) -> Tensor:
        return super().start_m().squeeze()

    def forward(self, x: Tensor) -> Tensor:
        g = (self.m / self.norm()).view(1, 1, -1)
        y = (g * fn.linear(x.to(self.dtype), self.w0) + g * self.branch(x)).to(x.dtype)
        return y if self.base.bias is None else y + self.base.bias


def test_several_deviations_of_the_shape_are_told_apart_by_name() -> None:
    """A value that was recorded for a tensor of another shape is not held against the layer."""
    wanted = ("forward.random_parameters", "forward.inputs", "shapes.canonical", "dropout.placement")
    found = audit(
        wrapped.Library({"dora": InThreeDimensionsAlone}),
        ["dora"],
        checks=lambda c: c.id in wanted,
        oracles=["peft", "author", "paper"],
        profile=TWELVE,
    )
    assert sorted(f.title for f in found.findings if f.tag == "BUG") == [
        "dropout reaches the low-rank product alone: the correction (g − 1) x Wᵀ sees the whole x",
        "for an x of some numbers of dimensions the output has another number of them",
        "the adapter's tensors are not the reference's",
    ]


class InSingle(wrapped.Lora):
    """The factors are float32 whatever the base is, and meet the input as it is."""

    def build(self) -> None:
        self.dtype = torch.float32
        super().build()

    def branch(self, x: Tensor) -> Tensor:
        return fn.linear(fn.linear(self.drop(x), self.A), self.B) * self.s


def test_an_exception_for_a_dtype_says_whose_tensors_are_of_another() -> None:
    found = audit(
        wrapped.Library({"lora": InSingle}),
        ["lora"],
        checks=lambda c: c.info.aspect == "dtype",
        profile=QUICK,
    )
    (finding,) = (f for f in found.findings if f.tag == "BUG")
    assert finding.title.startswith(
        "the adapter's tensors are float32 over a base in bfloat16, and used on its input uncast: wrapped raised"
    )
    assert "except under autocast" in finding.failure_mode


class TakesOnly(wrapped.Lora):
    """It refuses an x of another number of dimensions."""

    dims: ClassVar[int]

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != self.dims:
            raise ValueError(f"x has {x.dim()} dimensions, expected {self.dims}")
        return super().forward(x)


class RowsAlone(TakesOnly):
    """It refuses what is no matrix."""

    dims = 2


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


class SaysThreeDimensions(InThreeDimensions):
    """The same, and it says so."""

    inputs = frozenset({3})


def test_what_is_declared_is_a_missing_mode_whatever_happens_there() -> None:
    """Dimensions as dtypes: what the subject says beforehand that it does not take is not tried."""
    found = audit(SaysThreeDimensions(), ["ia3"], checks=lambda c: c.id == "forward.inputs")
    assert [(f.tag, f.severity) for f in found.findings] == [("OK-undoc", "major")]
    assert "2 dimensions" in found.findings[0].title


class Lacking(LoraLite):
    """`lora_lite` without dropout, a bias, an alpha: with what ``without`` does not say."""

    without: tuple[str, ...] = ()

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        spec = dataclasses.replace(spec, dropout=0.0) if "dropout" in self.without else spec
        return dataclasses.replace(spec, alpha=1.0) if "alpha" in self.without else spec

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        if "bias" in self.without and base.bias is not None:
            raise Unsupported("no bias")
        return super().adapt(base, spec)


@pytest.mark.parametrize(
    ("without", "aspect"),
    [
        (("dropout",), "dropout"),
        (("bias",), "forward"),
        (("alpha",), "scale"),
        (("alpha", "dropout"), "scale"),
    ],
)
def test_a_missing_mode_stands_where_its_lines_are(without: tuple[str, ...], aspect: str) -> None:
    """A library whose factor is 1 whatever the rank has no alpha either."""
    subject = Lacking()
    subject.without = without
    (finding,) = audit(subject, ["lora"], checks=lambda c: c.id == "scale.specs").findings
    assert finding.aspect == aspect
    assert "rank" not in finding.title


class OutputsOnly(LoraLite):
    """(IA)³ on one side of a layer."""

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        if spec.feedforward:
            raise Unsupported("(IA)³ on outputs only")
        return super().adapt(base, spec)


def test_one_missing_mode_is_told_once() -> None:
    """Where it is asked about, and where most cases have it."""
    found = audit(OutputsOnly(), ["ia3"], checks=lambda c: c.id in ("shapes.modes", "lifecycle.saved"))
    assert [c.cause for c in found.run.claims] == ["mode_missing", "mode_missing"]
    (finding,) = found.findings
    assert len(finding.claims) == 2


class OneVector(TakesOnly, wrapped.Dora):
    """Takes one vector, and nothing else."""

    dims = 1


class OfVectors(wrapped.Library):
    """Says so."""

    inputs = frozenset({1})


OF_ROWS = (
    "forward.linear",
    "forward.base_kept",
    "forward.random_parameters",
    "merge.weight",
    "merge.in_training",
)


def test_who_takes_vectors_alone_is_asked_in_vectors() -> None:
    """By the reference, too, whose answer to a vector may have other dimensions: that is not the library's."""
    asked = audit(OfVectors({"dora": OneVector}), ["dora"], checks=lambda c: c.id in OF_ROWS, profile=QUICK)
    ended = {(c.outcome, c.cause) for c in asked.run.claims}
    assert not {outcome for outcome, _ in ended} & {"fail", "error"}, asked.run.claims
    assert "audit_failed" not in {cause for _, cause in ended}
