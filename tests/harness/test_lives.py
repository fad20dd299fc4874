"""The claims on the life of an adapter: each wrong library is found out by the one that is meant for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from harness.compare.life_faults import CATALOGUE
from harness.engine.checks import load_checks
from harness.test_lifecycle_several import TRAINABLE
from oracles.implementation import Adapted, AdapterSpec
from oracles.variants import VARIANTS
from reports.model import ALONE
from tests.life_table import asked
from tests.subjects.broken_lives import BROKEN_LIVES, BrokenLife, DroppingLibrary, ShiftingLibrary
from tests.subjects.judged import QUICK, audit
from tests.subjects.lives import Adapter, Layer, Library
from tests.subjects.wrapped import Library as OneAdapter


@pytest.mark.parametrize("broken", BROKEN_LIVES, ids=lambda b: f"{b.variant}-{b.name}")
def test_found_out(broken: BrokenLife) -> None:
    """The claim fails, says what is wrong, and shows a sequence of a few steps."""
    claim = asked(broken)
    assert claim.outcome in ("fail", "error"), claim
    said = claim.diagnosis.mistake.removeprefix("lifecycle.") if claim.diagnosis else ""
    assert said == broken.says
    if claim.outcome == "fail":
        assert claim.witness is not None
        assert len(str(claim.witness.case.get("steps")).split(" · ")) <= broken.steps


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_right_library_is_not_accused(variant: str) -> None:
    """With all the methods, everything holds."""
    found = audit(Library(), [variant], checks=lambda check: check.info.aspect == "lifecycle", profile=QUICK)
    assert {c.id: c.reason for c in found.run.claims if c.outcome != "pass"} == {}


def test_settings_of_their_own_are_no_fault() -> None:
    """A library with a rate of dropout for each adapter passes."""
    found = audit(DroppingLibrary(), ["lora"], checks=lambda c: c.id == "lifecycle.dropout", profile=QUICK)
    assert [c.outcome for c in found.run.claims] == ["pass"]


def test_a_further_tensor_that_learns_is_no_fault() -> None:
    """What the model does not know of is not trained in a life: the output would be another."""
    checks = ("lifecycle.output", "lifecycle.merged", "lifecycle.gradients", "lifecycle.copies")
    found = audit(ShiftingLibrary(), ["lora"], checks=lambda c: c.id in checks, profile=QUICK)
    assert {c.id: c.reason for c in found.run.claims if c.outcome != "pass"} == {}


@pytest.mark.parametrize("variant", ["lora", "pissa"])
def test_what_is_not_offered_is_no_failure(variant: str) -> None:
    """With one adapter and no switching, what needs more is not offered, and the verdict is none the worse."""
    found = audit(
        OneAdapter(), [variant], checks=lambda check: check.info.aspect == "lifecycle", profile=QUICK
    )
    outcomes = {c.check.removeprefix("lifecycle."): c for c in found.run.claims}
    assert {c.outcome for c in outcomes.values()} <= {"pass", "not_applicable"}
    assert outcomes["output"].cause == "not_offered"
    assert outcomes["detach"].outcome == outcomes["merged"].outcome == "pass"
    assert found.verdicts[variant].verdict == "Faithful"


def test_every_claim_and_every_fault_is_shown() -> None:
    """Each claim has a wrong library that it finds out, and each fault of the model one that has it."""
    claims = {id_ for id_, check in load_checks().items() if check.info.aspect == "lifecycle"}
    assert {b.claim for b in BROKEN_LIVES} == claims
    assert {d.mistake.removeprefix("lifecycle.") for d in CATALOGUE} == {b.says for b in BROKEN_LIVES} - {""}


def test_a_choice_that_is_stated_is_no_bug() -> None:
    """That inactive adapters stay trainable is a bug where nobody says so."""
    wrong = next(b for b in BROKEN_LIVES if b.name == "EveryAdapterTrainable")
    stating = type("Stating", (wrong.make,), {"__doc__": "Adapters that are not active stay trainable."})  # type: ignore[misc, arg-type]
    tags = [
        [f.tag for f in audit(make(), ["lora"], checks=lambda c: c.id == wrong.claim, profile=QUICK).findings]
        for make in (wrong.make, stating)
    ]
    assert tags == [["BUG"], ["OK-doc"]]


def test_an_unmerge_that_rounds_is_not_due_to_a_graver_fault() -> None:
    """What stays folded in would be off by more than the digits."""
    wrong = next(b for b in BROKEN_LIVES if b.name == "UnmergedBySubtraction")
    assert asked(wrong).detail == ALONE


class InactiveAside(Layer):
    """Adapters that are not active are kept outside of the module, and come back as they were."""

    def switch(self, names: Sequence[str]) -> None:
        shelf = vars(self).setdefault("shelf", {})
        self.adapters.update(shelf)
        super().switch(names)
        shelf.clear()
        self.adapters.requires_grad_(True)
        for key in [key for key in self.adapters if key.removeprefix("adapter_") not in names]:
            shelf[key] = self.adapters.pop(key)

    def adapter(self, name: str) -> Adapter:
        return vars(self).get("shelf", {}).get("adapter_" + name) or super().adapter(name)


class Shelving(Library):
    layer = InactiveAside


def test_an_adapter_that_is_not_active_may_be_elsewhere() -> None:
    """Nor does it matter that it would be trainable: no optimiser is given it."""
    checks = ("lifecycle.same_tensors", "lifecycle.trainable")
    found = audit(Shelving(), ["lora"], checks=lambda c: c.id in checks, profile=QUICK)
    assert {c.id: c.reason for c in found.run.claims if c.outcome != "pass"} == {}


def test_nothing_is_said_of_gradients_that_was_not_measured() -> None:
    """Those of an adapter that is scaled by zero come, as zeros; those of one that is passed by do not."""
    assert "come as zeros, and where none comes" in TRAINABLE.failure_mode


class RefusesToTrainMerged(Layer):
    """In training mode a layer that is merged is not called, and a sentence says so."""

    def forward(self, x: Tensor) -> Tensor:
        if self.merged and self.training:
            raise RuntimeError("cannot call forward on a merged layer in training mode")
        return super().forward(x)


class Strict(Library):
    """The layer above."""

    layer = RefusesToTrainMerged


def _refusing(method: str) -> Any:
    """A library's method that asks for the layer to be unmerged first."""

    def asked(self: Library, adapted: Adapted, *arguments: Any) -> Any:
        if adapted.module.merged:
            raise RuntimeError("unfold first")
        return getattr(Library, method)(self, adapted, *arguments)

    return asked


@pytest.mark.parametrize(
    "method", ["add_adapter", "set_adapters", "delete_adapter", "merge", "save", "detach"]
)
def test_while_merged_a_library_may_ask_to_be_unmerged_first(method: str) -> None:
    """Whatever is asked of it."""
    subject = type("Asking", (Library,), {method: _refusing(method)})()
    found = audit(subject, ["lora"], checks=lambda c: c.info.aspect == "lifecycle", profile=QUICK)
    assert [f.title for f in found.findings if f.tag == "BUG"] == []


def test_a_merged_layer_may_be_for_evaluation_alone() -> None:
    """It is asked in evaluation mode."""
    found = audit(Strict(), ["lora"], checks=lambda c: c.info.aspect == "lifecycle", profile=QUICK)
    assert [f.title for f in found.findings if f.tag == "BUG"] == []


class MergesInEvaluationAlone(Layer):
    """In training mode nothing is folded in, and a sentence says so."""

    def fold(self) -> None:
        if self.training:
            raise ValueError("merging is for inference: call eval() first")
        super().fold()

    def to_plain(self) -> nn.Linear:
        if self.training:
            raise ValueError("merging is for inference: call eval() first")
        return super().to_plain()


class ForInference(Library):
    """The layer above."""

    layer = MergesInEvaluationAlone


def test_merging_may_be_for_evaluation_alone() -> None:
    """It is asked in evaluation mode, and what is exported goes on in training mode."""
    found = audit(
        ForInference(), ["lora"], checks=lambda c: c.info.aspect in ("lifecycle", "merge"), profile=QUICK
    )
    assert [f.title for f in found.findings if f.tag == "BUG"] == []
    assert {c.outcome for c in found.run.claims if c.check in ("lifecycle.merged", "merge.weight")} == {
        "pass"
    }


class LoadsTheDefaultAlone(Library):
    """Reads the file of an adapter under the name that it had when it was saved, and under no other."""

    def save(self, adapted: Adapted, path: Path) -> None:
        super().save(adapted, path)
        self.saved = adapted.name

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        if self.saved != "default":
            raise ValueError(f"the file is of {self.saved}, and not of default")
        return super().load(base, spec, path)


def test_the_step_that_raises_is_among_those_that_are_told() -> None:
    """Else the case that is told of raises nothing, and it takes, of all things, what it was not asked with."""
    found = audit(
        LoadsTheDefaultAlone(), ["lora"], checks=lambda c: c.id == "lifecycle.others", profile=QUICK
    )
    (claim,) = found.run.claims
    assert claim.witness is not None
    assert "save_and_load" in str(claim.witness.case["steps"])
