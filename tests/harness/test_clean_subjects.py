"""Right implementations in many styles: none of them gets a BUG, and only what they lack keeps them from Faithful."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from torch import nn

from harness.cases.profiles import Profile
from harness.engine.checks import Check
from oracles import registry
from oracles.implementation import Adapted, AdapterSpec, Implementation
from tests.remote.subjects import gated
from tests.subjects import (
    functional,
    fused,
    hooked,
    odd,
    parametrized,
    subclassed,
    transposed,
    wrapped,
)
from tests.subjects.judged import audit

FAST = Profile("quick", 2, 0)
# None of these subjects adapts whole models or writes PEFT's files; averages over masks take longest of all.
LEFT_OUT = ("save_load.interchange", "dropout.expectation")


def asked(check: Check) -> bool:
    """The checks that have something to ask of these subjects."""
    return check.info.aspect != "targets" and check.id not in LEFT_OUT


@dataclass(frozen=True)
class Style:
    """A style and, per variant, the words of what keeps it from Faithful; every other variant is Faithful."""

    make: Callable[[], Implementation]
    lacks: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.make().name


NO_DROPOUT = dict.fromkeys(("lora", "pissa", "dora", "delora"), "dropout")
NO_GRAM_SCHMIDT = {"hra": "Gram-Schmidt|gram_schmidt"}
NO_FILES = dict.fromkeys(wrapped.LAYERS, "no save or no load")
WIDE = dict.fromkeys(NO_FILES, "autocast")  # a documented choice: answers in x's dtype
CACHES = dict.fromkeys(NO_FILES, "evaluation mode")  # a documented choice: as loralib
PICKLES = dict.fromkeys(NO_FILES, "pickle")
STYLES = (
    Style(wrapped.Library),
    Style(hooked.Library, PICKLES),
    Style(subclassed.Library, CACHES | NO_GRAM_SCHMIDT),
    Style(transposed.Library, WIDE | NO_GRAM_SCHMIDT),
    Style(fused.Library),
    Style(functional.Library, WIDE | NO_DROPOUT | NO_GRAM_SCHMIDT),
    Style(parametrized.Library, NO_FILES | NO_DROPOUT | NO_GRAM_SCHMIDT),
    Style(odd.SinglePrecision, {"lora": "float64", "ia3": "float64"}),
    Style(odd.OwnBackward),
    Style(odd.Functional, {"dora": "autocast"}),
    Style(odd.CachedDora, {"dora": "no save or no load"}),
    Style(odd.Folding, {"lora": "evaluation mode"}),  # no gradient reaches the adapter there
)
CASES = [pytest.param(s, v, id=f"{s}-{v}") for s in STYLES for v in sorted(s.make().variants)]


@pytest.mark.parametrize(("style", "variant"), CASES)
def test_no_false_alarm(style: Style, variant: str) -> None:
    """No BUG; Faithful unless the style lacks something, and then that is what the verdict says."""
    found = audit(style.make(), [variant], checks=asked, profile=FAST)
    bugs = [f"{f.id} {f.title} {f.claims}" for f in found.findings if f.tag == "BUG"]
    assert not bugs
    verdict = found.verdicts[variant]
    if variant not in style.lacks:
        assert verdict.verdict == "Faithful", verdict.reason
    else:
        assert verdict.verdict in ("Partial", "Faithful-with-doc-gap"), verdict.reason
        assert any(_says(f.title, style.lacks[variant]) for f in found.findings), verdict.reason


def _says(title: str, words: str) -> bool:
    return any(word in title for word in words.split("|"))


@pytest.mark.parametrize("variant", sorted(wrapped.LAYERS))
def test_every_oracle(variant: str) -> None:
    """Against all oracles there are, recorded ones too, a right implementation stays Faithful."""
    found = audit(wrapped.Library(), [variant], oracles=registry.ids(), checks=asked, profile=FAST)
    assert not [f"{f.id} {f.tag} {f.title} {f.claims}" for f in found.findings]
    assert found.verdicts[variant].verdict == "Faithful"


def asked_of_a_gate(check: Check) -> bool:
    """What is asked of copies, files and modes."""
    return check.id in (
        "contexts.deepcopy",
        "contexts.pickle",
        "save_load.stored",
        "shapes.modes",
        "forward.modes",
    )


def test_a_computed_slot_and_a_mode_that_nearest_leaves_out() -> None:
    """A gate stored as l − 1 is stored; a mode that cannot be expressed is missing."""
    found = audit(gated.Library(), ["ia3"], checks=asked_of_a_gate, profile=FAST)
    outcomes = {claim.check: claim.outcome for claim in found.run.claims}
    assert not [f.title for f in found.findings if f.tag == "BUG"]
    assert outcomes["save_load.stored"] == outcomes["contexts.deepcopy"] == "pass", outcomes
    assert outcomes["shapes.modes"] == "not_applicable", outcomes
    assert any("feedforward" in f.title for f in found.findings), [f.title for f in found.findings]


class NoDropoutNoAlpha(wrapped.Library):
    """LoRA whose configuration has a rank alone."""

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        """Alpha is the rank, and nothing is dropped."""
        return dataclasses.replace(spec, alpha=float(spec.rank), dropout=0.0)


def test_what_nearest_leaves_out_is_told() -> None:
    """As a missing mode, by its name; and no question about dropout counts as answered."""
    found = audit(
        NoDropoutNoAlpha(), ["lora"], checks=lambda c: c.info.aspect in ("dropout", "scale"), profile=FAST
    )
    told = [f.title for f in found.findings]
    assert any("alpha" in title and "dropout" in title for title in told), told
    assert {c.outcome for c in found.run.claims if c.aspect == "dropout"} == {"not_applicable"}


class LosesTheMagnitude(wrapped.Library):
    """What is loaded has the base's norms in the magnitude's place."""

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        found, fresh = super().load(base, spec, path), self.adapt(copy.deepcopy(base), spec)
        found.slots["m"].put(fresh.slots["m"].canonical() + 3.0)
        return found


def test_a_lost_tensor_is_not_told_as_other_dropout() -> None:
    """What drops the same features of another adapter is the other adapter's matter."""
    asked = ("save_load.round_trip", "save_load.dropout")
    found = audit(LosesTheMagnitude(), ["dora"], checks=lambda c: c.id in asked, profile=FAST)
    outcomes = {claim.check: claim.outcome for claim in found.run.claims}
    assert outcomes == {"save_load.round_trip": "fail", "save_load.dropout": "not_applicable"}
