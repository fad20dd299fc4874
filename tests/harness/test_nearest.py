"""A library that takes fewer specs is asked with those that it takes, everywhere, and of the methods that it has."""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn
from torch.nn import functional as fn

from harness.compare.offered import why_not
from harness.engine.checks import Check
from harness.subjects.lora_lite import LoraLite
from oracles.implementation import Adapted, AdapterSpec, Implementation, Unsupported
from tests.life_table import TWELVE
from tests.subjects import broken_alone, wrapped
from tests.subjects.judged import audit


class SomeDropout(LoraLite):
    """`lora_lite`, of which an assertion demands a dropout above zero."""

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        return dataclasses.replace(spec, dropout=max(spec.dropout, 1e-9))

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        assert spec.dropout > 0
        return super().adapt(base, spec)


class ForwardAlone(SomeDropout):
    """The same without any further method."""

    add_adapter, set_adapters = Implementation.add_adapter, Implementation.set_adapters
    delete_adapter, merge_in_place = Implementation.delete_adapter, Implementation.merge_in_place
    unmerge, merge, detach = Implementation.unmerge, Implementation.merge, Implementation.detach
    save, load = Implementation.save, Implementation.load


class AlphaIsTheRank(LoraLite):
    """`lora_lite` without an alpha of its own, which its subject does not say beforehand."""

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        if spec.alpha != spec.rank:
            raise Unsupported("alpha is the rank")
        return super().adapt(base, spec)


def asked(check: Check) -> bool:
    return check.info.aspect in ("lifecycle", "dropout") or check.id in ("forward.pure", "targets.detach")


def test_no_dropout_of_zero_is_no_crash_and_no_side_effect() -> None:
    """What is compared with a layer without dropout is compared with the nearest to it."""
    found = audit(SomeDropout(), ["lora"], checks=asked)
    bad = {c.id: c.reason for c in found.run.claims if c.outcome not in ("pass", "not_applicable")}
    assert bad == {}
    told = {c.check: c.outcome for c in found.run.claims}
    assert told["dropout.off_in_eval"] == told["forward.pure"] == told["dropout.gradients"] == "pass"


def test_methods_that_are_not_there_are_not_offered() -> None:
    """Lives of which no step can be taken are no lives that hold."""
    found = audit(ForwardAlone(), ["lora"], checks=lambda c: c.info.aspect == "lifecycle")
    assert {c.check for c in found.run.claims if c.cause != "not_offered"} == {
        "lifecycle.kept",
        "lifecycle.copies",
    }
    assert "adapter" in why_not(ForwardAlone(), AdapterSpec("lora"), "add_adapter")


def test_a_spec_that_is_not_taken_says_nothing_of_the_methods() -> None:
    """They are tried with the spec of the claim, which is one that the subject takes."""
    found = audit(AlphaIsTheRank(), ["lora"], checks=lambda c: c.info.aspect == "lifecycle", profile=TWELVE)
    missing = {c.check: c.reason for c in found.run.claims if c.cause == "not_offered"}
    assert all("alpha is the rank" not in (reason or "") for reason in missing.values()), missing
    assert why_not(AlphaIsTheRank(), AdapterSpec("lora", rank=3, alpha=3.0), "add_adapter") == ""


class AlwaysDrops(wrapped.Lora):
    """``F.dropout`` without the mode: evaluation drops, too."""

    def branch(self, x: Tensor) -> Tensor:
        dropped = fn.dropout(x.to(self.dtype), self.spec.dropout)
        return fn.linear(fn.linear(dropped, self.A), self.B) * self.s


def test_dropout_that_never_ends_is_told_once() -> None:
    """Nothing is said of where it acts, nor of a mode that would help."""
    subject = wrapped.Library({"lora": AlwaysDrops})
    wanted = ("dropout.off_in_eval", "dropout.placement", "dropout.expectation", "init.evaluation_mode")
    found = audit(subject, ["lora"], checks=lambda c: c.id in wanted)
    assert [(f.title, f.severity) for f in found.findings] == [
        ("dropout stays active in evaluation mode", "critical")
    ]


def test_a_mask_that_is_merged_has_its_name() -> None:
    """One draw looks like a factor of 1/(1 − p) where the layer is small."""
    subject = wrapped.Library({"lora": broken_alone.MergesAMask})
    found = audit(subject, ["lora"], checks=lambda c: c.id == "merge.in_training", profile=TWELVE)
    assert [c.diagnosis.mistake for c in found.run.claims if c.diagnosis] == ["merge.mask"]
