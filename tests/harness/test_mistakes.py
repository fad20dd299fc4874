"""Every entry of the mistakes catalogue as a subject: the audit catches it, and says by its name what it does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch import Tensor, nn

from harness.cases.layer_cases import Case
from harness.cases.profiles import Profile
from harness.compare.context import Context
from harness.compare.outcome import Deviation
from harness.engine.checks import Check
from harness.engine.session import claims_for, load_checks
from oracles.equation import Equation
from oracles.implementation import AdapterSpec
from oracles.mistakes import Mistake, catalogue, mistaken, mistakes_of
from oracles.variants import VARIANTS
from reports.model import Claim
from tests.subjects import wrapped
from tests.subjects.judged import audit

TWELVE = Profile("default", 12, 0)
# In this order: the checks that tell most mistakes apart come first, and most entries need no other.
ASKED = (
    "forward.random_parameters",
    "init.deterministic",
    "init.principal",
    "init.pairs",
    "forward.gradients",
    "forward.input_gradient",
    "dropout.placement",
    "dropout.off_in_eval",
    "dropout.expectation",
    "init.identity",
    "init.residual",
    "step0.dead_parameters",
    "dtype.output",
    "init.distribution",
    "init.keyed",
    "shapes.canonical",
    "shapes.roles",
    "shapes.frozen_base",
    "save_load.stored",
    "save_load.round_trip",
    "training.alive",
)
# Facts that a diagnosis cannot be read off: the finding has the check's own words.
UNNAMED = {"delora.norm_not_saved", "vera.matrices_not_saved"}


def claims(subject: Equation, variant: str) -> Iterator[Claim]:
    """The claims in the order of ASKED, against PEFT or, where it is not asked, the equations."""
    for id_ in ASKED:
        check = load_checks()[id_]
        if check.applies(VARIANTS[variant]):
            oracle = "peft" if check.against is None or "peft" in check.against else "paper"
            yield from claims_for(
                subject, variants=[variant], oracles=[oracle], checks=lambda c: c.id == id_, profile=TWELVE  # noqa: B023
            )  # fmt: skip


@pytest.mark.parametrize("entry", [pytest.param(m, id=m.id) for m in catalogue()])
def test_caught_and_named(entry: Mistake) -> None:
    """Some claim fails, and a failing one is explained by this entry."""
    named: set[str] = set()
    failed: list[str] = []
    for claim in claims(mistaken(entry.id, name=f"with {entry.id}"), entry.variant):
        if claim.outcome not in ("fail", "error"):
            continue
        failed.append(claim.id)
        if entry.id in UNNAMED:
            return
        named |= {claim.diagnosis.mistake} if claim.diagnosis else set()
        if entry.id in named:
            return
    assert failed, "nothing caught it"
    pytest.fail(f"{failed} caught it, under the name of {sorted(named) or 'nothing'}")


@pytest.mark.parametrize("variant", VARIANTS)
def test_enough(variant: str) -> None:
    """At least five per variant, each with a failure mode."""
    assert len([m for m in mistakes_of(variant) if not m.agrees_with]) >= 5
    assert all(m.failure_mode and m.summary for m in mistakes_of(variant))


class OtherLawOnATrainableBase(wrapped.Lora):
    """A is drawn with a slope of α/r, which makes it too large, and the base stays trainable."""

    def start_a(self, A: Tensor) -> None:
        nn.init.kaiming_uniform_(A, a=self.s)

    def build(self) -> None:
        super().build()
        self.base.requires_grad_(True)


def test_a_start_is_not_laid_to_what_has_nothing_to_do_with_it() -> None:
    """On the small cases the test of a law may fail even the equation: that makes no mistake its cause."""

    def asked(check: Check) -> bool:
        return check.id in ("init.distribution", "shapes.frozen_base", "shapes.canonical")

    subject = wrapped.Library({"lora": OtherLawOnATrainableBase})
    found = audit(subject, ["lora"], checks=asked, profile=Profile("quick", 4, 0))
    told = {claim.split("[")[0]: f.title for f in found.findings for claim in f.claims}
    assert "trainable" in told["shapes.frozen_base"], told
    assert "trainable" not in told["init.distribution"], told


class BothFromOneLaw(wrapped.Lora):
    """A and B are both drawn from N(0, 0.05²)."""

    def build(self) -> None:
        super().build()
        nn.init.normal_(self.B, std=0.05)

    def start_a(self, A: Tensor) -> None:
        nn.init.normal_(A, std=0.05)


def test_the_law_of_one_tensor_is_told_beside_the_start_of_another() -> None:
    """That B does not start at zero says nothing of A, whose law is another one than the references'."""

    def asked(check: Check) -> bool:
        return check.info.aspect in ("init", "step0", "shapes")

    found = audit(wrapped.Library({"lora": BothFromOneLaw}), ["lora"], checks=asked)
    told = {claim.split("[")[0]: f.title for f in found.findings for claim in f.claims}
    assert told["init.deterministic"].startswith("B starts at random values"), told
    assert "Gaussian" in told["init.distribution"], told


class OnePlusAndBiasAlone(wrapped.Ia3):
    """y = (1 + l) ⊙ (x Wᵀ) + b: what changes the output without the bias changes no gradient of the gate."""

    def build(self) -> None:
        super().build()
        nn.init.zeros_(self.l)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.linear(x, self.base.weight) * (1 + self.l)
        return (y if self.base.bias is None else y + self.base.bias).to(x.dtype)


def test_of_two_mistakes_what_both_change_is_no_third() -> None:
    """Autocast shows both: it is told with them, and not as a fault of its own."""

    def asked(check: Check) -> bool:
        return check.info.aspect in ("init", "forward") or check.id == "contexts.autocast"

    found = audit(wrapped.Library({"ia3": OnePlusAndBiasAlone}), ["ia3"], checks=asked)
    told = [f.title for f in found.findings if any("contexts.autocast[" in claim for claim in f.claims)]
    assert told
    assert not any("autocast" in title for title in told), told


def test_what_is_nan_is_not_told_again_by_what_compares_it_with_itself() -> None:
    """A scale rounded down to zero makes PiSSA's factors infinite: the call is as pure, the file as right as before."""

    def asked(check: Check) -> bool:
        return check.id in (
            "forward.random_parameters",
            "forward.pure",
            "save_load.round_trip",
            "forward.eval_mode",
        )

    found = audit(mistaken("pissa.integer_scale"), ["pissa"], checks=asked)
    bugs = {claim.split("[")[0] for f in found.findings if f.tag == "BUG" for claim in f.claims}
    assert bugs == {"forward.random_parameters"}, bugs
    untold = [f for f in found.findings if "cannot be verified" in f.title]
    assert len(untold) <= 1, [f.title for f in untold]


def test_a_file_whose_bytes_are_never_the_same_is_not_one_that_holds_alpha() -> None:
    """safetensors writes what lies beside the tensors in another order every time; alpha is in none of them."""
    check = load_checks()["save_load.other_settings"]
    case = Case(AdapterSpec("dora", rank=2, alpha=3.0), 5, 6, True, (4,), "float32", 0)
    for _ in range(6):
        with pytest.raises(Deviation) as found:
            check.function(Context(Equation(), Equation(), VARIANTS["dora"]), case)
        assert found.value.diagnosis is not None
        assert found.value.diagnosis.mistake == "save_load.alpha_not_stored"


def test_a_tensor_that_is_not_trained_hides_no_wrong_function() -> None:
    """What does not train has no gradient, which is no part of the function that is wrong besides."""

    def asked(check: Check) -> bool:
        return check.id in ("forward.random_parameters", "forward.gradients", "shapes.roles")

    found = audit(mistaken("delora.scalar_norm", "delora.lambda_frozen"), ["delora"], checks=asked)
    assert {f.mistake for f in found.findings} == {"delora.scalar_norm", "delora.lambda_frozen"}


def test_a_base_that_trains_is_not_told_again_by_lives() -> None:
    """A training step moves the base, so that nothing that is merged or detached is what it was."""

    def asked(check: Check) -> bool:
        return check.id in ("shapes.frozen_base", "step0.base_frozen", "lifecycle.merged", "lifecycle.detach")

    found = audit(mistaken("dora.trainable_base"), ["dora"], checks=asked)
    assert {f.mistake for f in found.findings} == {"dora.trainable_base"}
