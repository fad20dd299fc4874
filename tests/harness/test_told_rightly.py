"""What subjects were once told wrongly or not at all, each with one that is right in the same place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

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
    [
        (odd.Folding(), [("contexts.folded_in_eval", "OK-doc", "none")]),
        (Subtracting(), [("contexts.unfolds_what_is_there", "OK-undoc", "minor")]),
    ],
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
    assert titles(ComputesItsWeight, "forward.pure") == [
        "calling the layer has side effects: tensors are no longer among its parameters and buffers"
    ]


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


class RandomisedFactors(wrapped.Pissa):
    """The first triples of torch's randomised decomposition, after two iterations."""

    def factors(self, W: Tensor) -> tuple[Tensor, Tensor]:
        """(A, B), a little off, otherwise with each seed."""
        U, S, V = torch.svd_lowrank(W, q=self.spec.rank, niter=2)
        root = (S / self.s).sqrt()
        return root[:, None] * V.T, U * root


class SmallestTriples(wrapped.Pissa):
    """The last triples in the place of the first."""

    def factors(self, W: Tensor) -> tuple[Tensor, Tensor]:
        """(A, B) of the smallest singular values."""
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        root = (S[-self.spec.rank :] / self.s).sqrt()
        return root[:, None] * Vh[-self.spec.rank :], U[:, -self.spec.rank :] * root


@pytest.mark.parametrize(
    ("layer", "told"), [(RandomisedFactors, ("OK-undoc", "minor")), (SmallestTriples, ("BUG", "critical"))]
)
def test_a_randomised_decomposition_is_one(layer: type[wrapped.Pissa], told: tuple[str, str]) -> None:
    """PEFT has one as an option; other triples are another method."""
    (found,) = findings(wrapped.Library({"pissa": layer}), ["init.principal"], "pissa")
    assert (found.tag, found.severity) == told


class FrozenIsOff(wrapped.Ia3):
    """The gate is applied while it trains."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.l.requires_grad else self.base(x)


class LoraFrozenIsOff(wrapped.Lora):
    """The branch is computed while A trains."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.A.requires_grad or self.B.requires_grad else self.base(x)


@pytest.mark.parametrize(
    ("variant", "layer", "told"),
    [("ia3", FrozenIsOff, ("OK-undoc", "major")), ("lora", LoraFrozenIsOff, ("BUG", "critical"))],
)
def test_what_an_author_does_is_no_bug_of_his_method(
    variant: str, layer: type[wrapped.Wrapped], told: tuple[str, str]
) -> None:
    """The authors of (IA)³ leave a frozen gate out; nobody leaves out a frozen LoRA."""
    (found,) = findings(wrapped.Library({variant: layer}), ["contexts.partly_frozen"], variant)
    assert (found.mistake, found.tag, found.severity) == ("contexts.off_when_frozen", *told)


class HalvesItsFiles(wrapped.Library):
    """Files are written in half precision."""

    def write(self, tensors: Mapping[str, Tensor], method: str, path: Path) -> None:
        super().write({n: t.half() for n, t in tensors.items()}, method, path)


def test_a_file_of_fewer_digits_is_one_finding() -> None:
    """It depends on no state, and on no base."""
    checks = ["save_load.round_trip", "save_load.stored", "save_load.other_base", "lifecycle.saved"]
    (found,) = findings(HalvesItsFiles(), checks)
    assert found.title == "the file holds in half precision what the adapter holds in full"


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
