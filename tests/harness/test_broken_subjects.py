"""Wrong implementations: each is caught by the check that should catch it, and judged as badly as it is."""

from __future__ import annotations

import pytest

from harness.cases.profiles import Profile
from harness.engine.checks import Check
from harness.subjects.lora_lite import LoraLite
from tests.subjects import (  # noqa: F401  (they fill the table)
    awkward_loaders,
    broken_alone,
    broken_contexts,
    broken_rank_stabilised,
    checkpoint_loaders,
)
from tests.subjects.broken import BROKEN, Broken
from tests.subjects.judged import audit

# One question per aspect that must still be answered with yes where a mistake is of another kind.
UNRELATED = {
    "shapes": "shapes.canonical",
    "init": "init.base_weight",
    "scale": "scale.effective",
    "step0": "step0.gradients",
    "forward": "forward.random_parameters",
    "dropout": "dropout.off_in_eval",
    "dtype": "dtype.output",
    "contexts": "contexts.accumulation",
    "training": "training.alive",
    "merge": "merge.detach",
    "save_load": "save_load.round_trip",
}
# As many examples as the default profile has: a mistake that needs a bias, or rank six, needs a case that has it.
TWELVE = Profile("default", 12, 0)


def cases() -> list[object]:
    """Every wrong subject."""
    return [pytest.param(b, id=f"{b.variant}-{b.name}") for b in BROKEN]


@pytest.mark.parametrize("broken", cases())
def test_caught(broken: Broken) -> None:
    """The checks that should fail do, unrelated ones hold, and the verdict is what DESIGN §7 makes of it."""
    quiet = {UNRELATED[aspect] for aspect in broken.quiet} - set(broken.caught)

    def asked(check: Check) -> bool:
        return check.id in broken.caught or check.id in quiet

    found = audit(broken.make(), [broken.variant], checks=asked, profile=TWELVE)
    outcomes = {claim.check: claim for claim in found.run.claims}
    for check in broken.caught:
        assert outcomes[check].outcome in ("fail", "error"), f"{check} missed it: {outcomes[check]}"
    for check in quiet & outcomes.keys():
        assert outcomes[check].outcome in ("pass", "not_applicable"), f"{check}: {outcomes[check].reason}"
    assert found.verdicts[broken.variant].verdict == broken.verdict, found.verdicts[broken.variant].reason


def test_enough() -> None:
    """Every variant has its share of wrong subjects."""
    counts = {v: sum(b.variant == v for b in BROKEN) for v in LoraLite.variants}
    assert min(counts.values()) >= 10, counts
    assert len({(b.variant, b.name) for b in BROKEN}) == len(BROKEN) >= 100
