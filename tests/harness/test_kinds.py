"""The claims on kinds of layers: wrong libraries are found out, a right one is not accused."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from harness.cases import kind_cases
from harness.compare.kind_faults import CATALOGUE
from harness.engine.checks import load_checks
from harness.test_layers import (
    CANNOT_LEARN,
    CHANGED_BY_EVALUATING,
    CHANNELS,
    MODE_IGNORED,
    OTHER_ACTS,
    TOGETHER,
    UNDROPPED,
    UNMERGED_OTHERWISE,
    WRONG_RATE,
)
from oracles.implementation import Adapted, AdapterSpec, Unsupported
from oracles.mistakes import mistakes_of
from tests.life_table import TWELVE, asked
from tests.subjects.judged import audit
from tests.subjects.kinds import (
    BROKEN_KINDS,
    BrokenKind,
    DenseLibrary,
    FoldsOnEvaluation,
    InBlocksLibrary,
    Library,
    LowRank,
    OtherLayoutLibrary,
    PairsLibrary,
    PutsPlainOnes,
    SharedLibrary,
    UnfoldedLibrary,
    fake_quantiser,
    rounding_quantiser,
)
from tests.subjects.plain_embeddings import plain
from tests.subjects.wrapped import Library as LinearOnly


@pytest.fixture(autouse=True)
def _own_quantiser(monkeypatch: pytest.MonkeyPatch) -> None:
    """No library that quantises has to be installed for the tests."""
    monkeypatch.setattr(kind_cases, "QUANTISERS", {"own": fake_quantiser})


@pytest.mark.parametrize("broken", BROKEN_KINDS, ids=lambda b: b.name)
def test_found_out(broken: BrokenKind) -> None:
    claim = asked(broken)
    assert claim.outcome in ("fail", "error"), claim
    assert (claim.diagnosis.mistake.removeprefix("layers.") if claim.diagnosis else "") == broken.says


def test_a_right_library_is_not_accused() -> None:
    """All holds but for merging into a convolution with groups, which it refuses."""
    found = audit(Library(), ["lora"], checks=lambda check: check.info.aspect == "layers", profile=TWELVE)
    left = {c.check: c.cause for c in found.run.claims if c.outcome != "pass"}
    assert left == {"layers.merge_conv2d_groups": "not_offered"}
    assert found.verdicts["lora"].verdict == "Faithful"


def test_folding_on_evaluation_is_no_fault() -> None:
    """Quantised layers too, whose weight is rounded once more each time."""
    asked_for = ("layers.evaluation", "layers.conv1d")
    found = audit(FoldsOnEvaluation(), ["lora"], checks=lambda c: c.id in asked_for, profile=TWELVE)
    assert [c.outcome for c in found.run.claims] == ["pass", "pass"]


def test_what_the_base_does_in_evaluation_mode_is_no_fault_of_the_adapter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kind_cases, "QUANTISERS", {"own": rounding_quantiser})
    found = audit(Library(), ["lora"], checks=lambda c: c.id == "layers.evaluation", profile=TWELVE)
    assert [c.outcome for c in found.run.claims] == ["pass"]


def test_groups_may_share_the_rank() -> None:
    """A second factor without blocks computes the equation, and learns where a block would have zeros."""
    found = audit(DenseLibrary(), ["lora"], checks=lambda c: c.id == "layers.conv2d_groups", profile=TWELVE)
    assert [c.outcome for c in found.run.claims] == ["pass"]


def test_groups_may_have_blocks_in_both_factors() -> None:
    """Then the update is one that a convolution with groups can hold, and that merging is asked for."""
    asked_for = ("layers.conv2d_groups", "layers.merge_conv2d_groups")
    found = audit(InBlocksLibrary(), ["lora"], checks=lambda c: c.id in asked_for, profile=TWELVE)
    assert [c.outcome for c in found.run.claims] == ["pass", "pass"]


@pytest.mark.parametrize("subject", [SharedLibrary(), PairsLibrary()], ids=lambda s: type(s).__name__)
def test_groups_may_be_factorised_otherwise(subject: Library) -> None:
    """One A for all, or a pair in each: nothing is said of convolutions with groups; the others are asked as ever."""
    asked_for = ("layers.conv2d_groups", "layers.merge_conv2d_groups", "layers.conv2d")
    found = audit(subject, ["lora"], checks=lambda c: c.id in asked_for, profile=TWELVE)
    told = {c.check: (c.outcome, c.cause) for c in found.run.claims}
    assert told == {
        "layers.conv2d": ("pass", None),
        "layers.conv2d_groups": ("not_applicable", "outside"),
        "layers.merge_conv2d_groups": ("not_applicable", "outside"),
    }


def test_a_layout_that_is_not_known_is_not_guessed_at() -> None:
    """As many numbers as the blocks have are no blocks: no expected number is told, and both shapes are."""
    asked_for = ("layers.conv2d_groups", "layers.conv2d")
    found = audit(OtherLayoutLibrary(), ["lora"], checks=lambda c: c.id in asked_for, profile=TWELVE)
    told = {c.check: c for c in found.run.claims}
    assert told["layers.conv2d"].outcome == "pass"
    claim = told["layers.conv2d_groups"]
    assert (claim.outcome, claim.cause) == ("unverified", "no_slot"), claim
    assert claim.reason == "the subject's B on conv2d layers with groups has another shape"
    assert claim.witness is not None
    assert claim.witness.quantity == "shape of B"


def test_one_layout_is_one_finding() -> None:
    """Whatever the sizes and options of the convolutions that it is seen on."""
    asked_for = ("layers.conv2d", "layers.conv2d_dilation", "layers.half", "layers.evaluation")
    found = audit(UnfoldedLibrary(), ["lora"], checks=lambda c: c.id in asked_for, profile=TWELVE)
    assert {c.outcome for c in found.run.claims} == {"unverified"}
    (finding,) = found.findings
    assert len(finding.claims) == len(asked_for)


def test_a_wrong_output_that_has_two_readings_is_told_without_a_number() -> None:
    claim = asked(next(b for b in BROKEN_KINDS if b.name == "SharedUnscaled"))
    assert claim.witness is not None
    assert (claim.witness.actual, claim.ratio) == ("neither", None)


def test_who_replaces_layers_one_by_one_is_not_asked_of_those_it_does_not_mean() -> None:
    scaled = ("layers.embedding_scale", "layers.merge_embedding_scale")
    found = audit(PutsPlainOnes(), ["lora"], checks=lambda c: c.id in (*scaled, "layers.embedding"))
    told = {c.check: (c.outcome, c.cause) for c in found.run.claims}
    assert told == {
        **dict.fromkeys(scaled, ("not_applicable", "not_offered")),
        "layers.embedding": ("pass", None),
    }
    assert found.verdicts["lora"].verdict == "Faithful"


class TakesThemAsPlain(Library):
    """The library, and not the subject's file, makes a plain embedding of the layer that it is given."""

    def adapt(self, base: nn.Module, spec: AdapterSpec) -> Adapted:  # type: ignore[override]
        return super().adapt(plain(base) if isinstance(base, nn.Embedding) else base, spec)


def test_a_library_that_takes_a_layer_for_another_is_told_of() -> None:
    """Where the library reads the layer's weight itself, nobody else has chosen."""
    found = audit(
        TakesThemAsPlain(), ["lora"], checks=lambda c: c.id == "layers.embedding_scale", profile=TWELVE
    )
    (finding,) = found.findings
    assert finding.mistake == "layers.plain_in_place"


class ConvolutionsAlone(Library):
    """Right, and of convolutions only."""

    layers = frozenset({"conv2d"})

    def adapt(self, base: nn.Module, spec: AdapterSpec) -> Adapted:  # type: ignore[override]
        if not isinstance(base, nn.Conv2d):
            raise Unsupported("convolutions only")
        return super().adapt(base, spec)


class UnscaledConvolution(LowRank):
    """Without α/r."""

    def update(self, x: Tensor) -> Tensor:
        return super().update(x) / self.s


class UnscaledConvolutionsAlone(ConvolutionsAlone):
    """The layer above."""

    layer = UnscaledConvolution


def test_who_takes_convolutions_alone_is_asked_of_them() -> None:
    """The rest is not offered; a mistake of the catalogue has its name there, too."""
    asked_for = ("layers.conv2d", "layers.merge_conv2d", "forward.random_parameters")
    found = audit(ConvolutionsAlone(), ["lora"], checks=lambda c: c.id in asked_for, profile=TWELVE)
    told = {c.check: (c.outcome, c.cause) for c in found.run.claims}
    assert told == {
        "layers.conv2d": ("pass", None),
        "layers.merge_conv2d": ("pass", None),
        "forward.random_parameters": ("not_applicable", "no_variant"),
    }
    found = audit(
        UnscaledConvolutionsAlone(), ["lora"], checks=lambda c: c.id == "layers.conv2d", profile=TWELVE
    )
    (finding,) = found.findings
    assert finding.title == "on a convolution, no scale: α is ignored"


def test_who_takes_linear_layers_alone_is_not_asked() -> None:
    found = audit(
        LinearOnly(), ["lora"], checks=lambda c: c.info.aspect == "layers" or c.id == "scale.effective"
    )
    assert {c.cause for c in found.run.claims if c.aspect == "layers"} == {"not_offered"}
    assert found.verdicts["lora"].verdict == "Faithful"


def test_without_a_library_that_quantises_the_claim_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kind_cases, "QUANTISERS", {})
    found = audit(Library(), ["lora"], checks=lambda check: check.info.aspect == "layers")
    outcomes = {c.check: c for c in found.run.claims}
    assert outcomes["layers.quantised"].cause == outcomes["layers.merge_quantised"].cause == "outside"
    assert outcomes["layers.merge_conv1d"].outcome == "pass"


def test_every_claim_and_every_fault_is_shown() -> None:
    """Each claim has a wrong library that it finds out, and each entry of the catalogue one that has it."""
    claims = {id_ for id_, check in load_checks().items() if check.info.aspect == "layers"}
    assert {b.claim for b in BROKEN_KINDS} == claims
    names = {d.mistake.removeprefix("layers.") for d in CATALOGUE}
    of_checks = {
        d.mistake.removeprefix("layers.")
        for d in (
            CANNOT_LEARN,
            CHANNELS,
            CHANGED_BY_EVALUATING,
            MODE_IGNORED,
            OTHER_ACTS,
            TOGETHER,
            UNDROPPED,
            UNMERGED_OTHERWISE,
            WRONG_RATE,
        )
    }
    elsewhere = {*of_checks, *(m.id for m in mistakes_of("lora"))}
    said = {b.says for b in BROKEN_KINDS} - {""}
    assert names <= said <= names | elsewhere
