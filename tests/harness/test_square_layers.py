"""Every claim on numbers meets a square layer, in the quickest profile, too."""

from __future__ import annotations

import pytest

from harness.cases.profiles import Profile
from oracles.implementation import Implementation
from tests.subjects import wrapped
from tests.subjects.broken import TransposedSquare
from tests.subjects.broken_alone import LoadsSquaresTurned, MergesSquaresUntransposed
from tests.subjects.judged import once
from tests.subjects.kinds import BROKEN_KINDS


def _turned() -> Implementation:
    return wrapped.Library({"lora": TransposedSquare})


def _of_a_kind(name: str) -> Implementation:
    return next(broken.make() for broken in BROKEN_KINDS if broken.name == name)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("subject", "check"),
    [
        (MergesSquaresUntransposed(), "merge.weight"),
        (MergesSquaresUntransposed(), "merge.half"),
        (LoadsSquaresTurned(), "save_load.round_trip"),
        (_turned(), "forward.random_parameters"),
        (_of_a_kind("FoldsSquaresTheOtherWayRound"), "layers.merge_conv1d"),
        (_of_a_kind("FoldsSquareEmbeddingsUntransposed"), "layers.merge_embedding"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_wrong_on_squares_alone_is_found(subject: Implementation, check: str, seed: int) -> None:
    """Whatever is drawn; and the finding says where it is wrong."""
    (claim,) = once(subject, ["lora"], lambda c: c.id == check, Profile("quick", 4, seed, caps=True))
    assert claim.outcome == "fail", claim
    assert claim.witness is not None
    assert claim.witness.case["in"] == claim.witness.case["out"]
    if claim.diagnosis is None:
        assert "only where in = out" in claim.witness.note
