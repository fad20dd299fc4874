"""What is said of calls, dropout, ranks and of what trains is what was seen: each with a subject that is right."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from harness.cases.profiles import Profile
from harness.compare.refusals import complaint
from harness.engine.described import source_of
from oracles.implementation import Adapted, AdapterSpec, Slot
from oracles.mistakes import mistaken
from reports.model import Finding
from reports.render.fixes import look_at
from tests.harness.test_told_rightly import ComputesItsWeight, findings
from tests.subjects import wrapped
from tests.subjects.judged import QUICK, audit

TWELVE = Profile("default", 12, 0)


def found(layer: type[wrapped.Wrapped], variant: str, *checks: str) -> tuple[Finding, ...]:
    """What these checks find of a layer."""
    return findings(wrapped.Library({variant: layer}), checks, variant, TWELVE)


# --- calls


class Counts(wrapped.Lora):
    """The update grows by a part of itself at every call."""

    calls = 0

    def branch(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().branch(x) * (1 + self.calls / 8)


class Halves(wrapped.Lora):
    """The input is overwritten."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        x.data.mul_(0.5)
        return y


@pytest.mark.parametrize(
    ("layer", "mistake", "failure"),
    [
        (ComputesItsWeight, "forward.takes_away", "does not find base.weight"),
        (Counts, "forward.depends_on_calls", "results depend on what was called before"),
        (Halves, "forward.overwrites_input", "what the caller computes from x after the call"),
    ],
)
def test_what_a_call_does_is_what_is_told(layer: type[wrapped.Wrapped], mistake: str, failure: str) -> None:
    """That results depend on earlier calls is said where the same input had two answers."""
    (told,) = found(layer, "lora", "forward.pure")
    assert told.mistake == mistake
    assert failure in told.failure_mode
    assert ("called before" in told.failure_mode) == (layer is Counts)


class ReplacesAtTheStart(wrapped.Lora):
    """While B is zero, each call puts a new B in the place of the old one."""

    def forward(self, x: Tensor) -> Tensor:
        if not bool(self.B.any()):
            self.B = nn.Parameter(self.B.detach().clone())
        return super().forward(x)


class Looked(wrapped.Library):
    """The wrapper looks B up anew each time."""

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        found = super().adapt(base, spec)
        return Live(found.module, dict(found.slots))


class Live(Adapted):
    """Slots of what the module holds now."""

    def __getattribute__(self, name: str) -> object:
        module = object.__getattribute__(self, "module")
        return module.slots() if name == "slots" else object.__getattribute__(self, name)


def test_a_parameter_that_a_call_replaces_is_the_librarys_fault() -> None:
    """Of a wrapper that holds the tensor nothing else can be asked, and of one that looks it up the call is told."""
    held = audit(
        wrapped.Library({"lora": ReplacesAtTheStart}), ["lora"], checks=lambda c: c.id == "forward.pure"
    )
    (told,) = held.findings
    assert (told.tag, "puts another tensor in the place of B" in told.title) == ("BUG", True)
    live = audit(Looked({"lora": ReplacesAtTheStart}), ["lora"], checks=lambda c: c.id == "forward.pure")
    assert {f.tag for f in live.findings} == {"BUG"}


def test_a_call_without_effects_is_left_alone() -> None:
    assert found(wrapped.Lora, "lora", "forward.pure") == ()


# --- ranks


class WarnsOfOddRanks(wrapped.Hra):
    """In the same words each time, with Gram-Schmidt too."""

    def check_rank(self, r: int, in_: int) -> None:
        if r % 2:
            warnings.warn("the symmetric start needs an even r", stacklevel=2)


class WarnsOnce(wrapped.Hra):
    """Once in a process."""

    said: ClassVar[list[int]] = []

    def check_rank(self, r: int, in_: int) -> None:
        if r % 2 and not self.said:
            self.said.append(r)
            warnings.warn("the symmetric start needs an even r", stacklevel=2)


class WarnsOfSomethingElse(wrapped.Hra):
    """At every rank."""

    def check_rank(self, r: int, in_: int) -> None:
        warnings.warn(f"adapters of rank {r} are experimental", stacklevel=2)


@pytest.mark.parametrize(
    ("layer", "told"), [(WarnsOfOddRanks, False), (WarnsOnce, False), (WarnsOfSomethingElse, True)]
)
def test_a_rank_that_is_warned_of_is_not_taken_without_a_word(
    layer: type[wrapped.Wrapped], told: bool
) -> None:
    """However often it was said before; what is said of every rank is no word about this one."""
    assert bool(found(layer, "hra", "shapes.undefined_rank")) == told


# --- dropout


class Corrected(wrapped.Pissa):
    """The whole weight stays, and the principal part is taken out with the factors of the start."""

    def build(self) -> None:
        super().build()
        self.at_first = self.A.detach().clone(), self.B.detach().clone()

    def forward(self, x: Tensor) -> Tensor:
        A0, B0 = self.at_first
        wide = x.to(self.dtype)
        dropped = self.drop(wide)
        whole = fn.linear(wide, self.w0, self.base.bias)
        trained = fn.linear(fn.linear(dropped, self.A), self.B)
        taken_out = fn.linear(fn.linear(self.seen(wide, dropped), A0), B0)
        return wrapped.answered(whole + self.s * (trained - taken_out), x)

    def seen(self, x: Tensor, dropped: Tensor) -> Tensor:
        """What the frozen factors are given: x itself, which is PiSSA."""
        return x


class CorrectedOfDropped(Corrected):
    """They are given the trained ones' input."""

    def seen(self, x: Tensor, dropped: Tensor) -> Tensor:
        return dropped


class CorrectedOfAnotherMask(Corrected):
    """They are given an x with a mask of its own."""

    def seen(self, x: Tensor, dropped: Tensor) -> Tensor:
        return self.drop(x)


class WholeLayerDropped(wrapped.Dora):
    """One dropped x goes into everything."""

    def forward(self, x: Tensor) -> Tensor:
        return fn.linear(self.drop(x.to(self.dtype)), self.weight(), self.base.bias).to(x.dtype)


@pytest.mark.parametrize(
    ("variant", "layer", "told"),
    [
        ("pissa", CorrectedOfDropped, ["pissa.dropout_on_correction"]),
        ("pissa", CorrectedOfAnotherMask, [None]),
        ("pissa", Corrected, []),
        ("dora", WholeLayerDropped, ["dora.dropout_on_everything"]),
        ("dora", wrapped.Dora, []),
    ],
)
def test_what_else_is_dropped_has_its_name(
    variant: str, layer: type[wrapped.Wrapped], told: list[str | None]
) -> None:
    """And the smallest case speaks of the output: the branch itself is given a dropped x in all of them."""
    library = wrapped.Library({variant: layer})
    judged = audit(library, [variant], checks=lambda check: check.id == "dropout.placement")
    assert [f.mistake for f in judged.findings] == told
    for claim in judged.run.claims:
        assert "the branch's input" not in (claim.reason or "")


# --- what trains


class WithBiases(wrapped.Lora):
    """The factors are layers; which of them have a bias, and whether it starts at zero."""

    of_a, of_b, from_zero = False, True, False

    def build(self) -> None:
        (out, in_), r = self.base.weight.shape, self.spec.rank
        self.down = nn.Linear(in_, r, bias=self.of_a, dtype=self.dtype)
        self.up = nn.Linear(r, out, bias=self.of_b, dtype=self.dtype)
        nn.init.zeros_(self.up.weight)
        if self.from_zero:
            nn.init.zeros_(self.up.bias)

    def slots(self) -> dict[str, Slot]:
        return {"A": Slot(self.down.weight), "B": Slot(self.up.weight)}

    def branch(self, x: Tensor) -> Tensor:
        return self.up(self.down(self.drop(x.to(self.dtype)))) * self.s


class BiasFromZero(WithBiases):
    """As PEFT's option has it."""

    from_zero = True


class BiasOfA(WithBiases):
    """The first layer has one."""

    of_a, of_b = True, False


class BothBiases(WithBiases):
    """Layers as torch makes them."""

    of_a = True


class BiasUnscaled(WithBiases):
    """It is added beside the scaled product."""

    def branch(self, x: Tensor) -> Tensor:
        return super().branch(x) + (1 - self.s) * self.up.bias


class NoBias(WithBiases):
    """LoRA."""

    of_b = False


class BasesBias(wrapped.Lora):
    """The base's bias is left to train."""

    def build(self) -> None:
        super().build()
        if self.base.bias is not None:
            self.base.bias.requires_grad_(True)


class Gated(wrapped.Dora):
    """A number of its own is trained, which starts where it does nothing."""

    def build(self) -> None:
        super().build()
        self.gate = nn.Parameter(torch.ones(3, 3, dtype=self.dtype))

    def slots(self) -> dict[str, Slot]:
        return {name: slot for name, slot in super().slots().items() if name != "gate"}

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        return y + (super().forward(x) - y) * self.gate.mean().to(y.dtype)


@pytest.mark.parametrize(
    ("variant", "layer", "told"),
    [
        ("lora", WithBiases, ("lora.own_bias", "(`up.bias`)", "BUG", "critical")),
        ("lora", BiasFromZero, ("lora.own_bias", "(`up.bias`)", "OK-undoc", "minor")),
        ("lora", BiasOfA, ("lora.own_bias_of_a", "(`down.bias`)", "BUG", "critical")),
        ("lora", BothBiases, ("lora.own_biases", "up.bias`", "BUG", "critical")),
        ("lora", BiasUnscaled, ("lora.own_bias_unscaled", "(`up.bias`)", "BUG", "critical")),
        ("lora", BasesBias, ("lora.trainable_bias", "the base layer's bias", "BUG", "major")),
        ("dora", Gated, ("shapes.further_trained", "`gate`", "BUG", "major")),
    ],
)
def test_what_trains_beside_the_adapter_is_the_base_s_or_its_own(
    variant: str, layer: type[wrapped.Wrapped], told: tuple[str, str, str, str]
) -> None:
    """One finding with its name, of the output too where it acts from the start."""
    checks = ("shapes.frozen_base", "forward.random_parameters", "step0.base_frozen")
    (one,) = found(layer, variant, *checks)
    assert (one.mistake, one.tag, one.severity) == (told[0], *told[2:])
    assert told[1] in one.title


@pytest.mark.parametrize("layer", [NoBias, wrapped.Lora])
def test_factors_without_a_bias_train_nothing_else(layer: type[wrapped.Wrapped]) -> None:
    assert found(layer, "lora", "shapes.frozen_base", "forward.random_parameters") == ()


class LearnsThroughAScalar(wrapped.Lora):
    """Both factors start away from zero, and a trained number at zero multiplies their product."""

    trained = True

    def build(self) -> None:
        super().build()
        nn.init.normal_(self.B)
        self.scalar = nn.Parameter(torch.zeros((), dtype=self.dtype), requires_grad=self.trained)

    def slots(self) -> dict[str, Slot]:
        return {name: slot for name, slot in super().slots().items() if name != "scalar"}

    def branch(self, x: Tensor) -> Tensor:
        return super().branch(x) * self.scalar


class ScalarStaysZero(LearnsThroughAScalar):
    """The number is not trained."""

    trained = False


def test_what_learns_through_a_parameter_of_its_own_learns() -> None:
    checks = (
        "step0.nothing_trains",
        "step0.gradients",
        "step0.dead_parameters",
        "training.sgd",
        "training.alive",
    )
    assert found(LearnsThroughAScalar, "lora", *checks) == ()
    (named,) = found(LearnsThroughAScalar, "lora", *checks, "shapes.frozen_base")
    assert named.mistake == "shapes.further_trained"
    (told,) = found(ScalarStaysZero, "lora", "step0.nothing_trains")
    assert told.mistake == "lora.no_effect"


def test_where_outputs_agree_the_verdict_speaks_of_gradients() -> None:
    """The attached norm leaves the forward pass as it is."""
    checks = ("forward.random_parameters", "forward.gradients", "forward.input_gradient")
    asked = audit(mistaken("dora.norm_attached"), ["dora"], checks=lambda c: c.id in checks, profile=TWELVE)
    assert asked.verdicts["dora"].reason.startswith("the outputs are the references'")
    scaled = audit(mistaken("dora.bias_scaled"), ["dora"], checks=lambda c: c.id in checks, profile=TWELVE)
    assert scaled.verdicts["dora"].reason.startswith("the forward pass agrees with no reference")


# --- contexts


class KeepsItsProduct(wrapped.Lora):
    """From eval() to train() the product of the factors is that of the first call."""

    kept: Tensor | None = None

    def train(self, mode: bool = True) -> wrapped.Wrapped:
        self.kept = self.kept if not mode else None
        return super().train(mode)

    def branch(self, x: Tensor) -> Tensor:
        if self.training:
            return super().branch(x)
        if self.kept is None:
            self.kept = (self.s * self.B @ self.A).detach()
        return x.to(self.dtype) @ self.kept.T


def test_what_is_written_while_it_is_folded_in_is_asked_for() -> None:
    (told,) = found(KeepsItsProduct, "lora", "contexts.written_in_eval")
    assert (told.mistake, told.tag) == ("contexts.folded_in_eval", "OK-undoc")


class KeepsItsNorm(wrapped.Dora):
    """The row norms of the first call in evaluation mode are kept until train() or eval()."""

    kept: Tensor | None = None

    def train(self, mode: bool = True) -> wrapped.Wrapped:
        self.kept = None
        return super().train(mode)

    def norm(self) -> Tensor:
        if self.training:
            return super().norm()
        if self.kept is None:
            self.kept = super().norm()
        return self.kept


def test_what_is_kept_of_a_call_is_not_told_as_folded() -> None:
    """Where what is written acts in part, nothing was folded in."""
    (told,) = found(KeepsItsNorm, "dora", "contexts.written_in_eval")
    assert (told.mistake, told.tag) == ("contexts.cached_in_eval", "BUG")


class FoldsAtEachEval(wrapped.Lora):
    """eval() adds the update to the base once more each time, and train() takes all of it out."""

    times = 0

    def train(self, mode: bool = True) -> wrapped.Wrapped:
        if hasattr(self, "B"):
            self.times = 0 if mode else self.times + 1
        return super().train(mode)

    def branch(self, x: Tensor) -> Tensor:
        return super().branch(x) * max(self.times, 1)


def test_a_mode_that_is_asked_for_twice_is_the_same() -> None:
    (told,) = found(FoldsAtEachEval, "lora", "forward.eval_mode", "lifecycle.merged")
    assert told.mistake == "forward.mode_asked_twice"


class DegenerateAboveIn(wrapped.Hra):
    """Unpaired columns, and with Gram-Schmidt a rank above in is taken without a word."""

    def check_rank(self, r: int, in_: int) -> None:
        """Nothing is refused."""


def test_where_the_mode_has_no_value_at_all_its_start_is_not_accused() -> None:
    assert found(DegenerateAboveIn, "hra", "init.finite_modes") == ()


class GraphsAnyway(wrapped.Lora):
    """Autograd is on, whatever the caller says."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            return super().forward(x)


def test_a_graph_under_no_grad_is_told() -> None:
    (told,) = found(GraphsAnyway, "lora", "contexts.no_grad")
    assert (told.mistake, told.severity) == ("contexts.graph_under_no_grad", "major")
    assert found(wrapped.Lora, "lora", "contexts.no_grad") == ()


class FailsInHalfOnceTrained(wrapped.Lora):
    """Away from its start it takes no bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.bfloat16 and bool(self.B.any()):
            raise RuntimeError("expected m1 and m2 to have the same dtype")
        return super().forward(x)


def test_an_exception_has_the_case_that_it_was_raised_on() -> None:
    (claim,) = audit(
        wrapped.Library({"lora": FailsInHalfOnceTrained}), ["lora"], checks=lambda c: c.id == "forward.pure"
    ).run.claims
    assert claim.witness is not None
    assert claim.witness.case["dtype"] == "bfloat16"


class FailsOnVectors(wrapped.Lora):
    """x of one dimension is not taken where there is a bias."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 1 and self.base.bias is not None:
            raise IndexError("too many indices")
        return super().forward(x)


def test_an_exception_of_an_input_has_its_bias() -> None:
    library = wrapped.Library({"lora": FailsOnVectors})
    found = audit(library, ["lora"], checks=lambda c: c.id == "forward.one_dimension")
    (claim,) = (c for c in found.run.claims if c.oracle == "paper")
    assert claim.witness is not None
    assert (claim.witness.case["bias"], claim.witness.case["batch"]) == (True, [])
    assert found.verdicts["lora"].reason.startswith("wrapped raised IndexError")


class KeepsDirectionsAndNorms(wrapped.Hra):
    """The base weight is held as its rows' norms and directions, each of which is rounded."""

    def build(self) -> None:
        super().build()
        norms = self.base.weight.detach().norm(dim=1, keepdim=True)
        self.norms, self.unit = nn.Parameter(norms), nn.Parameter(self.base.weight.detach() / norms)
        self.norms.requires_grad_(False), self.unit.requires_grad_(False)
        del self.base.weight

    @property
    def w0(self) -> Tensor:
        return self.norms * self.unit

    def forward(self, x: Tensor) -> Tensor:
        return fn.linear(x, self.weight(), self.base.bias)


def test_a_base_that_is_held_otherwise_may_round_otherwise() -> None:
    layer = wrapped.Library({"hra": KeepsDirectionsAndNorms})
    (claim,) = audit(layer, ["hra"], checks=lambda c: c.id == "contexts.cast_and_back").run.claims
    assert claim.outcome == "not_applicable"
    assert "base weight" in str(claim.reason)


# --- remedies


class TakenOutAgain(wrapped.Lora):
    """The weight that the forward pass used is changed through ``.data`` before the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        used = self.w0 + self.s * self.B @ self.A
        y = fn.linear(x.to(self.dtype), used, self.base.bias)
        used.data.sub_(self.s * self.B.data @ self.A.data)
        return y.to(x.dtype)


class InputDetached(wrapped.Lora):
    """The branch is given a copy of x."""

    def branch(self, x: Tensor) -> Tensor:
        return super().branch(x.detach())


@pytest.mark.parametrize("layer", [TakenOutAgain, InputDetached])
def test_a_gradient_that_lacks_the_adapter_s_part_has_either_cause(layer: type[wrapped.Wrapped]) -> None:
    """The remedy names both, since values do not tell them apart."""
    judged = audit(
        wrapped.Library({"lora": layer}), ["lora"], checks=lambda check: check.id == "forward.input_gradient"
    )
    (told,) = [c.diagnosis for c in judged.run.claims if c.diagnosis]
    assert told.mistake == "lora.adapter_input_cut"
    assert "x's graph" in told.remedy
    assert "leave the weight that forward used" in told.remedy


class DrawnByRank(wrapped.Lora):
    """The bound is written out, and is the rank's."""

    def start_a(self, A: Tensor) -> None:
        nn.init.uniform_(A, -(self.spec.rank**-0.5), self.spec.rank**-0.5)


def test_a_bound_of_the_rank_is_not_laid_to_a_function() -> None:
    judged = audit(
        wrapped.Library({"lora": DrawnByRank}), ["lora"], checks=lambda check: check.id == "init.distribution"
    )
    told = {c.diagnosis.mistake: c.diagnosis.remedy for c in judged.run.claims if c.diagnosis}
    assert "kaiming" not in told["lora.a_fan"]


def test_a_right_gradient_and_start_need_no_remedy() -> None:
    assert found(wrapped.Lora, "lora", "forward.input_gradient", "init.distribution") == ()


# --- words


def test_torch_s_words_on_dtypes_are_not_taken_for_sizes() -> None:
    for words in (
        "mat1 and mat2 must have the same dtype, but got BFloat16 and Float",
        "Input type (BFloat16) and bias type (float) should be the same",
        "expected m1 and m2 to have the same dtype, but got: float != double",
    ):
        assert complaint(words) == " (dtypes that do not fit)"
    assert complaint("mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)") == " (sizes that do not fit)"


def test_what_to_look_at_in_half_precision_presumes_no_cast() -> None:
    assert "branches on the dtype" in look_at("dtype.identity", "dtype")


class NamesAFile(wrapped.Library):
    """Knows its file, and no symbol in it."""

    def source(self, variant: str, aspect: str) -> tuple[Path, str]:
        return Path(__file__), None  # type: ignore[return-value]


def test_a_file_without_a_symbol_is_no_symbol_of_the_name_none() -> None:
    assert source_of(NamesAFile(), "lora", "forward") == (Path(__file__), "")


class RoomForTwo(wrapped.Lora):
    """The factors of a second adapter are there from the start."""

    def build(self) -> None:
        super().build()
        self.second = nn.ParameterList([self.A.detach().clone(), self.B.detach().clone()])


class TakesASecond(wrapped.Library):
    """Gives them to the adapter that is added."""

    def add_adapter(self, adapted: Adapted, name: str, spec: AdapterSpec) -> Adapted:
        A, B = adapted.module.second
        return Adapted(adapted.module, {"A": Slot(A), "B": Slot(B)})


@pytest.mark.parametrize(("library", "strays"), [(wrapped.Library, 1), (TakesASecond, 0)])
def test_what_waits_for_another_adapter_is_no_stray(library: type[wrapped.Library], strays: int) -> None:
    subject = library({"lora": RoomForTwo})
    told = audit(subject, ["lora"], checks=lambda c: c.id == "shapes.frozen_base", profile=QUICK).findings
    assert len(told) == strays


class StaysFolded(wrapped.Lora):
    """eval() folds the update into the weight for good: the factors act no more."""

    folded = False

    def train(self, mode: bool = True) -> wrapped.Wrapped:
        if not mode and not self.folded:
            self.folded = True
            with torch.no_grad():
                self.base.weight += (self.s * self.B @ self.A).to(self.base.weight.dtype)
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) if self.folded else super().forward(x)


def test_what_stays_folded_in_is_told_as_that() -> None:
    """Nothing is taken out of the weight then, and inference mode has no part in it."""
    told = found(StaysFolded, "lora", "contexts.written_in_eval", "contexts.inference_mode")
    assert [f.mistake for f in told] == ["contexts.stays_folded"]


class WithoutGradients(wrapped.Lora):
    """Neither factor wants a gradient."""

    def build(self) -> None:
        super().build()
        self.A.requires_grad_(False)
        self.B.requires_grad_(False)


def test_an_adapter_that_does_not_train_is_told_by_its_tensors() -> None:
    """No optimiser is made without a tensor, and no claim fails for the audit's own reason."""
    checks = ("shapes.roles", "training.sgd", "training.adamw", "training.alive")
    subject = wrapped.Library({"lora": WithoutGradients})
    told = audit(subject, ["lora"], checks=lambda c: c.id in checks, profile=QUICK)
    assert "audit_failed" not in {c.cause for c in told.run.claims}
    assert [f.title for f in told.findings if f.tag == "BUG"] == ["A and B want no gradient"]
