"""What has a name is told by it, in the regime and of the mode where it is, and what follows from it is not told."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from harness.cases.layer_cases import Case
from harness.engine.shrinking import shrunk
from oracles.implementation import Adapted, AdapterSpec, Slot
from reports.model import Finding
from tests.harness.test_told_rightly import findings
from tests.subjects import broken, lives, wrapped
from tests.subjects.judged import QUICK, audit


def bugs(layer: type[wrapped.Wrapped], variant: str, *checks: str) -> list[str]:
    """The titles of what is a bug."""
    return bugs_of(wrapped.Library({variant: layer}), variant, *checks)


def bugs_of(subject: wrapped.Library | lives.Library, variant: str, *checks: str) -> list[str]:
    return [f.title for f in findings(subject, checks, variant) if f.tag == "BUG"]


def of_aspects(layer: type[wrapped.Wrapped], variant: str, aspects: Sequence[str]) -> list[Finding]:
    subject = wrapped.Library({variant: layer})
    found = audit(subject, [variant], checks=lambda c: c.info.aspect in aspects, profile=QUICK)
    return [f for f in found.findings if f.tag == "BUG"]


# --- in one regime alone


class OtherSideWhereSquare(wrapped.Ia3):
    """Where in is out, the feed-forward gate is on the output."""

    def forward(self, x: Tensor) -> Tensor:
        if self.spec.feedforward and self.base.in_features == self.base.out_features:
            y = self.base(x)
            return (y * self.l).to(y.dtype)
        return super().forward(x)


class NormOfColumnsWhereSquare(wrapped.Dora):
    """Where in is out, the norm is that of the columns."""

    def norm(self) -> Tensor:
        square = self.base.in_features == self.base.out_features
        return self.v().detach().norm(dim=0 if square else 1)


def test_a_catalogued_mistake_of_one_regime_is_told_with_the_regime() -> None:
    (title,) = bugs(OtherSideWhereSquare, "ia3", "forward.modes")
    assert title.startswith("only where in = out")
    assert "the gate is on the other side" in title


def test_a_wrong_function_is_not_nearly_right_on_other_cases() -> None:
    """Those in which it is right."""
    subject = wrapped.Library({"dora": NormOfColumnsWhereSquare})
    found = audit(
        subject,
        ["dora"],
        checks=lambda c: c.id == "forward.random_parameters",
        oracles=["peft", "author", "paper"],
    )
    assert [f.title for f in found.findings] == ["the output is not the reference's"]


def test_a_case_is_not_made_small_where_the_method_has_no_value() -> None:
    """Gram-Schmidt of three columns in two dimensions is rounding."""
    case = Case(AdapterSpec("hra", rank=3, alpha=3.0, gram_schmidt=True), 9, 5, True, (4,))
    assert shrunk(case, lambda c: c.spec.rank == 3).in_features == 3


# --- where the first cause is another


class AddsWhatIsScaledTwice(wrapped.Lora):
    """The update is divided by the rank twice."""

    @property
    def s(self) -> float:
        return super().s / self.spec.rank


class UnscaledBackward(wrapped.Lora):
    """The scale is multiplied where no gradient sees it."""

    def branch(self, x: Tensor) -> Tensor:
        scaled = super().branch(x)
        return scaled / self.s + (scaled - scaled / self.s).detach()


@pytest.mark.parametrize(
    ("layer", "title"),
    [
        (AddsWhatIsScaledTwice, "α/r² in place of α/r: divided by the rank twice"),
        (UnscaledBackward, "the backward pass leaves α/r out, which the output has"),
    ],
)
def test_one_cause_is_one_finding(layer: type[wrapped.Wrapped], title: str) -> None:
    """Its consequences in half precision, under autocast and with rank-stabilised scaling are none of their own."""
    aspects = ("forward", "scale", "dtype", "contexts", "step0", "training")
    assert [f.title for f in of_aspects(layer, "lora", aspects)] == [title]


class BaseAloneWithoutGradients(wrapped.Lora):
    """Without gradients the update is left out."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if torch.is_grad_enabled() else self.base(x)


def test_what_is_measured_without_gradients_follows_from_what_they_change() -> None:
    found = of_aspects(BaseAloneWithoutGradients, "lora", ("forward", "merge", "contexts", "dtype"))
    assert [f.title for f in found] == ["without gradients the layer computes another function"]


class SharedScale(lives.Layer):
    """The scale is the class's: the layer that was made last decides it."""

    latest = 1.0

    def __init__(self, base: nn.Linear, spec: AdapterSpec) -> None:
        super().__init__(base, spec)
        type(self).latest = spec.alpha / (spec.rank**0.5 if spec.rslora else spec.rank)

    def adapted(self, x: Tensor) -> Tensor:
        y, held = self.base(x), self.adapter("default")
        own = held.spec.alpha / (held.spec.rank**0.5 if held.spec.rslora else held.spec.rank)
        return y + (super().adapted(x) - y) * (self.latest / own)


class SharingLibrary(lives.Library):
    layer = SharedScale


def test_a_mode_that_another_layer_undoes_is_not_ignored() -> None:
    assert bugs_of(SharingLibrary(), "lora", "scale.rank_stabilised") == []


class UnscaledInEvaluation(wrapped.Lora):
    """In evaluation mode α/r is left out."""

    @property
    def s(self) -> float:
        return super().s if self.training else 1.0


class UnscaledInTraining(wrapped.Lora):
    """In training mode it is."""

    @property
    def s(self) -> float:
        return 1.0 if self.training else super().s


def test_a_mistake_of_evaluation_mode_alone_has_its_name() -> None:
    """One of training mode alone is one of the function, of which evaluation mode is no second deviation."""
    checks = ("forward.random_parameters", "forward.eval_mode")
    title = "in evaluation mode, and not in training mode, no scale: α is ignored"
    assert bugs(UnscaledInEvaluation, "lora", *checks) == [title]
    assert bugs(UnscaledInTraining, "lora", *checks) == ["no scale: α is ignored"]


# --- copies and files


class ExpOfItsOwn(wrapped.Ia3):
    """The gate is exp(v), and v is what trains."""

    def build(self) -> None:
        super().build()
        self.v = nn.Parameter(torch.zeros_like(self.l))
        del self.l

    def forward(self, x: Tensor) -> Tensor:
        self.__dict__["l"] = self.v.exp()
        return super().forward(x)

    def slots(self) -> dict[str, Slot]:
        return {
            "l": Slot(
                self.v,
                read=torch.exp,
                write=lambda v: v.clamp(min=1e-3).log(),
                gradient=lambda g: g / self.v.exp(),
            )
        }


def test_a_copy_is_asked_for_the_gradients_of_its_own_tensors() -> None:
    """A slot's ``gradient`` may close over the layer that it was made for."""
    assert bugs(ExpOfItsOwn, "ia3", "contexts.deepcopy") == []


class KeepsDirections(wrapped.Library):
    """The file holds U's columns at length one."""

    def save(self, adapted: Adapted, path: Path) -> None:
        module = copy.deepcopy(adapted.module)
        with torch.no_grad():
            module.U /= module.U.norm(dim=0)
        super().save(Adapted(module, module.slots()), path)


class ReadsAlone(wrapped.Library):
    """Of the file A alone is read."""

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        found = super().load(base, spec, path)
        with torch.no_grad():
            found.slots["B"].tensor.zero_()
        return found


def test_what_is_lost_of_a_tensor_in_the_file_has_its_name() -> None:
    title = "loading gives U with columns or rows of length one: their lengths are lost"
    assert bugs_of(KeepsDirections(), "hra", "save_load.round_trip") == [title]


def test_what_is_never_read_is_not_missed_in_a_damaged_file() -> None:
    title = "the loaded adapter starts anew with B, which the saved file holds"
    assert bugs_of(ReadsAlone(), "lora", "save_load.round_trip", "save_load.bad_files") == [title]


class MergesInSingle(wrapped.Lora):
    """What is merged is float32 whatever the base is."""

    def merged(self) -> nn.Linear:
        return super().merged().float()


def test_another_dtype_of_what_is_merged_has_its_name() -> None:
    assert bugs(MergesInSingle, "lora", "merge.half") == [
        "a layer in half precision is merged into one of another dtype"
    ]


class BreaksItsBase(wrapped.Library):
    """A file that is refused leaves the base with a hook that raises."""

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        try:
            return super().load(base, spec, path)
        except Exception:
            base.register_forward_pre_hook(lambda layer, args: layer.adapter)
            raise


def test_what_a_refused_load_leaves_behind_is_no_mistake_of_the_audit() -> None:
    found = audit(BreaksItsBase(), ["lora"], checks=lambda c: c.id == "save_load.bad_files", profile=QUICK)
    assert [c.cause for c in found.run.claims] == ["wrapper"]  # the hook is the subject file's here


# --- dropout under masks that are not torch's


class OwnMask(nn.Module):
    """Inverted dropout with a generator of its own, which torch's seed does not reach."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate, self.random = rate, numpy.random.default_rng(5)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = torch.from_numpy(self.random.random(x.shape) >= self.rate)
        return x * kept / (1 - self.rate)


class OwnMaskOnLowRank(broken.DoraHalfDropped):
    """The correction sees the whole x."""

    def build(self) -> None:
        super().build()
        self.drop = OwnMask(self.spec.dropout)


class OwnMaskOnUpdate(broken.DropoutOnOutput):
    """Entries of the update are dropped."""

    def build(self) -> None:
        super().build()
        self.drop = OwnMask(self.spec.dropout)


class OwnMaskOnInput(wrapped.Lora):
    """Where the references drop."""

    def build(self) -> None:
        super().build()
        self.drop = OwnMask(self.spec.dropout)


def test_the_place_of_dropout_is_named_whoever_draws_the_mask() -> None:
    (low,) = bugs(OwnMaskOnLowRank, "dora", "dropout.placement")
    assert low.startswith("dropout reaches the low-rank product alone")
    (update,) = bugs(OwnMaskOnUpdate, "lora", "dropout.placement")
    assert update.startswith("dropout is applied to the adapter's output instead of its input")
    assert not bugs(OwnMaskOnInput, "lora", "dropout.placement")


def test_a_bias_that_is_merged_with_another_factor_has_its_name() -> None:
    (title,) = bugs(broken.ExtraBiasMergedTwice, "lora", "merge.weight")
    assert title == "the adapter's part of the bias is merged with another factor than it acts with"


# --- where a tensor starts


class MagnitudeOfAHalf(wrapped.Dora):
    """m starts at 0.5, whatever W is."""

    def start_m(self) -> Tensor:
        return torch.full_like(super().start_m(), 0.5)


class MagnitudeOfAnotherWeight(wrapped.Dora):
    """m is the norm of a weight that the constructor has drawn."""

    def start_m(self) -> Tensor:
        return nn.Linear(self.base.in_features, self.base.out_features).weight.detach().norm(dim=1)


def test_a_start_that_no_mistake_explains_is_told_with_its_tensor() -> None:
    """What it is, too: the value where it is one everywhere, and that it is drawn at random."""
    (title,) = bugs(MagnitudeOfAHalf, "dora", "init.deterministic")
    assert title == "m does not start at the reference's value: it is 0.5 everywhere"
    (title,) = bugs(MagnitudeOfAnotherWeight, "dora", "init.deterministic")
    assert title == "m does not start at the reference's value: it is random over one base"
    (title,) = bugs(broken.MagnitudeWithEps, "dora", "init.deterministic")
    assert title == "m does not start at the reference's value"


class OrthonormalVectors(wrapped.Hra):
    """U starts with orthonormal columns."""

    def start_u(self, in_: int, r: int) -> Tensor:
        return torch.linalg.qr(torch.randn_like(super().start_u(in_, r)))[0]


class UnitVectors(wrapped.Hra):
    """U starts with columns of length one, in equal pairs."""

    def start_u(self, in_: int, r: int) -> Tensor:
        return nn.functional.normalize(super().start_u(in_, r), dim=0)


class GaussianVectors(wrapped.Hra):
    """U starts from a Gaussian, in equal pairs."""

    def start_u(self, in_: int, r: int) -> Tensor:
        return torch.randn(in_, r // 2).repeat_interleave(2, dim=1)


def test_a_law_that_no_mistake_explains_is_told() -> None:
    uniform = ", where the references draw its entries from a uniform law"
    told = {
        OrthonormalVectors: "the columns of U start orthonormal" + uniform,
        GaussianVectors: "U is drawn from a Gaussian" + uniform,
        UnitVectors: "the columns of U start at length one",  # which the catalogue has
    }
    for layer, title in told.items():
        assert bugs(layer, "hra", "init.distribution") == [title]


# --- several at once, one of them in the shape of a tensor


class MagnitudePerInput(wrapped.Dora):
    """m (in,) over the norms of the columns, which are not detached, α for α/r, and no dropout."""

    def start_m(self) -> Tensor:
        return self.w0.norm(dim=0)

    def forward(self, x: Tensor) -> Tensor:
        V = self.w0 + self.spec.alpha * self.B @ self.A
        return fn.linear(x.to(self.dtype), self.m * V / V.norm(dim=0), self.base.bias).to(x.dtype)


def test_what_another_shape_of_a_tensor_makes_is_looked_for_first() -> None:
    """Of thirty mistakes that touch the output, three together: those that make m as long come first."""
    checks = ("init.deterministic", "dtype.double", "dtype.forward", "forward.gradients", "dropout.active")
    told = findings(wrapped.Library({"dora": MagnitudePerInput}), checks, "dora")
    assert {f.mistake for f in told if f.tag == "BUG"} == {
        "dora.magnitude_per_input",
        "dora.norm_attached",
        "dora.alpha_unscaled",
        "dora.dropout_ignored",
    }
