"""What subjects were once told wrongly or not at all, each with one that is right in the same place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from harness.cases.profiles import Profile
from harness.engine.checks import Check
from oracles.implementation import Adapted, AdapterSpec, Implementation, Unsupported
from reports.model import Finding
from tests.subjects import odd, wrapped
from tests.subjects.broken_rank_stabilised import RankStabilised
from tests.subjects.judged import QUICK, audit

TWELVE = Profile("default", 12, 0)


def findings(
    subject: Implementation, checks: Sequence[str], variant: str = "lora", profile: Profile = QUICK
) -> tuple[Finding, ...]:
    """What these checks find."""

    def asked(check: Check) -> bool:
        return check.id in checks

    return tuple(audit(subject, [variant], checks=asked, profile=profile).findings)


def titles(layer: type[wrapped.Wrapped], *checks: str, variant: str = "lora") -> list[str]:
    """The titles of what is found of a layer."""
    return [f.title for f in findings(wrapped.Library({variant: layer}), checks, variant)]


# --- in evaluation mode


class SubtractsWhatIsThere(odd.FoldingLayer):
    """train() subtracts the update of now from the weight, as it is there."""

    def train(self, mode: bool = True) -> odd.FoldingLayer:
        if mode and self.kept is not None:
            self.kept = self.weight.data - (self.B @ self.A).data * self.s
        return super().train(mode)


class Subtracting(odd.Folding):
    """A folding library whose training mode subtracts."""

    layer = SubtractsWhatIsThere


@pytest.mark.parametrize(
    ("subject", "told"),
    [(odd.Folding(), []), (Subtracting(), [("contexts.unfolds_what_is_there", "OK-undoc", "minor")])],
)
def test_what_was_folded_in_is_taken_out(subject: Implementation, told: list[tuple[str, str, str]]) -> None:
    """Though something else was written meanwhile; loralib subtracts what is there, and is no bug."""
    found = findings(subject, ["contexts.written_in_eval"])
    assert [(f.mistake, f.tag, f.severity) for f in found] == told


# --- calls


class ComputesItsWeight(wrapped.Lora):
    """The first call puts a computed tensor in the place of the base's parameter."""

    def branch(self, x: Tensor) -> Tensor:
        if "weight" in self.base._parameters:
            held = self.base.weight
            del self.base._parameters["weight"]
            self.base.__dict__["weight"] = held * 1
        return super().branch(x)


def test_a_parameter_that_a_call_takes_away_is_missed() -> None:
    assert titles(ComputesItsWeight, "forward.pure") == ["calling the layer has side effects"]


class RowsOfTheBias(wrapped.Lora):
    """The bias is spread over rows, which one vector has not."""

    def forward(self, x: Tensor) -> Tensor:
        y = fn.linear(x, self.base.weight) + self.branch(x).to(x.dtype)
        return y if self.base.bias is None else y + self.base.bias.view(1, -1).expand_as(y)


def test_a_vector_is_asked_with_a_bias_too() -> None:
    (found,) = findings(wrapped.Library({"lora": RowsOfTheBias}), ["forward.one_dimension"])
    assert (found.tag, found.severity) == ("BUG", "major")


# --- starts


def start(fill: Callable[[Tensor], object]) -> type[wrapped.Lora]:
    """LoRA whose A starts so."""

    class Started(wrapped.Lora):
        """As above."""

        def start_a(self, A: Tensor) -> None:
            fill(A)

    return Started


@pytest.mark.parametrize(
    ("fill", "told"),
    [
        (lambda A: nn.init.normal_(A, std=0.02), ("OK-undoc", "minor", "from a Gaussian, where")),
        (lambda A: nn.init.normal_(A, std=3.0), ("OK-undoc", "major", "a Gaussian of an unusual size")),
        (nn.init.xavier_uniform_, ("BUG", "critical", "by Xavier's rule")),
        (lambda A: nn.init.kaiming_uniform_(A), ("BUG", "critical", "kaiming_uniform's default gain")),
    ],
)
def test_a_start_has_its_name(fill: Callable[[Tensor], object], told: tuple[str, str, str]) -> None:
    """The paper draws from a Gaussian of no stated size; a law that knows both sides is not the default gain's."""
    (found,) = findings(wrapped.Library({"lora": start(fill)}), ["init.distribution"])
    assert (found.tag, found.severity) == told[:2]
    assert told[2] in found.title


# --- what is always so


class AlwaysStabilised(RankStabilised):
    """Scales by the root of the rank, and by nothing else."""

    def nearest(self, spec: AdapterSpec) -> AdapterSpec:
        from dataclasses import replace

        return replace(spec, rslora=True)


def test_who_always_scales_by_the_root_takes_no_option_in_vain() -> None:
    """Its factor is the reference's for that option, and the author, who has none, is not asked."""
    checks = ["scale.rank_stabilised", "merge.rank_stabilised", "forward.random_parameters"]
    found = audit(
        AlwaysStabilised(),
        ["lora"],
        oracles=("peft", "author"),
        checks=lambda c: c.id in checks,
        profile=QUICK,
    )
    assert not found.findings
    assert {c.outcome for c in found.run.claims if c.oracle == "author"} == {"not_applicable"}


# --- what else is not as it seems


class DroppedTwiceAndBiasScaled(wrapped.Dora):
    """The bias is multiplied with the rest; each of the two terms has a mask of its own."""

    def forward(self, x: Tensor) -> Tensor:
        g, plain = self.gain(), fn.linear(self.drop(x), self.base.weight)
        low = fn.linear(fn.linear(self.drop(x), self.A), self.B) * self.s
        base = fn.linear(x, self.base.weight)
        b = 0 if self.base.bias is None else self.base.bias
        return (base + (g - 1) * plain + g * low + g * b).to(x.dtype)

    def gain(self) -> Tensor:
        """m / ‖V‖."""
        V = self.w0 + self.s * self.B @ self.A
        return self.m / V.norm(dim=1).detach()


def test_a_mistake_explains_nothing_where_it_does_not_show() -> None:
    """A bias that is scaled is no reason for masks that differ on a layer without one."""
    checks = ["forward.random_parameters", "dropout.active", "dropout.placement"]
    found = findings(wrapped.Library({"dora": DroppedTwiceAndBiasScaled}), checks, "dora")
    assert [f.mistake for f in found] == ["dora.bias_scaled", None]
    assert all("dropout.placement" not in claim for claim in found[0].claims)


class NothingToSwitchBetween(wrapped.Library):
    """One adapter, which can be switched off; it stays on."""

    def set_adapters(self, adapted: Adapted, names: Sequence[str]) -> None:
        if set(names) - {"default"}:
            raise Unsupported("one adapter only")


def test_switching_one_adapter_off_is_asked() -> None:
    (found,) = findings(NothingToSwitchBetween(), ["lifecycle.output"], profile=TWELVE)
    assert (found.tag, found.severity) == ("BUG", "critical")


def test_nothing_is_told_of_right_ones() -> None:
    checks = ["contexts.written_in_eval", "forward.pure", "forward.one_dimension", "init.distribution"]
    assert findings(wrapped.Library(), checks) == ()
    assert torch.is_grad_enabled()
