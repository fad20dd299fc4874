"""Right implementations in many styles: none of them gets a BUG, and only what they lack keeps them from Faithful."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from harness.cases.profiles import Profile
from harness.engine.checks import Check
from oracles import registry
from oracles.implementation import Implementation
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
NO_FILES = dict.fromkeys(("lora", "pissa", "dora", "ia3", "hra", "delora"), "no save or no load")
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
