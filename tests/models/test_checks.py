"""Each check on whole models fires on a subject that is wrong in just that, and on nothing that is right."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import lora_lite
from harness.cases.profiles import Profile
from harness.cases.tiny_models import ARCHITECTURES, ModelCase, blank, put
from harness.engine.checks import CHECKS, Check
from harness.engine.session import claims_for, load_checks
from harness.subjects.lora_lite import LoraLite, adapted, config
from harness.test_targets import HEADS_TOO, INSIDE_A_NAME, PATHS
from oracles.equation import Equation
from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot
from reports.judge.docstring_search import stating
from reports.model import Claim, Diagnosis, DocstringPart
from reports.render.fixes import instruction
from tests.subjects import wrapped
from tests.subjects.judged import audit

Targets = Sequence[str] | None


def ask(subject: Implementation, check: str, variant: str = "lora") -> Claim:
    """The one claim that ``check`` makes of a variant."""
    load_checks()
    profile = Profile("default", 12, 0)
    claims = claims_for(
        subject, variants=[variant], checks=lambda c: c.id == f"targets.{check}", profile=profile
    )
    assert len(claims) == 1
    return claims[0]


class Wrong(LoraLite):
    """lora_lite with ``spoil`` called on the adapted model."""

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Targets = None
    ) -> Mapping[str, Adapted]:
        found = dict(super().adapt_model(model, spec, targets))
        return self.spoil(model, spec, found)

    def spoil(self, model: nn.Module, spec: AdapterSpec, found: dict[str, Adapted]) -> Mapping[str, Adapted]:
        return found


class MissesOne(Wrong):
    def spoil(self, model: nn.Module, spec: AdapterSpec, found: dict[str, Adapted]) -> Mapping[str, Adapted]:
        lora_lite.detach(found.popitem()[1].module)
        return found


class LooseEndings(LoraLite):
    """Targets match any ending of a name, not whole parts of it: "o" catches "wo"."""

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Targets = None
    ) -> Mapping[str, Adapted]:
        names = [
            n for n, m in model.named_modules() if n.endswith(tuple(targets or ())) and hasattr(m, "weight")
        ]
        return super().adapt_model(model, spec, names)


class NoRareDefaults(LoraLite):
    """Says of an architecture that is not in its table that it has no default targets for it."""

    unknown: tuple[str, ...] = ("falcon", "gptj")

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Targets = None
    ) -> Mapping[str, Adapted]:
        if targets is None and model.config.model_type in self.unknown:
            raise ValueError("no default targets for this architecture")
        return super().adapt_model(model, spec, targets)


class NoGpt2(NoRareDefaults):
    """Takes GPT-2's layers by name, and has no defaults for it."""

    unknown = ("gpt2",)


class NoConv1D(LoraLite):
    """Takes no transposed layers at all, as it may."""

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Targets = None
    ) -> Mapping[str, Adapted]:
        if model.config.model_type == "gpt2":
            raise ValueError("Conv1D is not supported")
        return super().adapt_model(model, spec, targets)


class WarnsOfConv1D(LoraLite):
    """Adapts none of GPT-2's transposed layers, and says so in a warning."""

    says: ClassVar[str] = "no modules were adapted: is this architecture supported?"

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Targets = None
    ) -> Mapping[str, Adapted]:
        if model.config.model_type != "gpt2":
            return super().adapt_model(model, spec, targets)
        warnings.warn(self.says, stacklevel=2)
        return {}


class SilentOnConv1D(WarnsOfConv1D):
    """Adapts none of them, and what it warns of is something else."""

    says = "this method is experimental"


class OutputSide(LoraLite):
    """(IA)³ gates the output of every layer, feed-forward ones too."""

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Targets = None
    ) -> Mapping[str, Adapted]:
        right = lora_lite.target.default_targets(model.config.model_type, "ia3")
        return super().adapt_model(model, spec, targets or right)


class SidesByShape(LoraLite):
    """(IA)³ gates the input where a layer narrows: right on Llama, wrong on BERT's attention.output.dense."""

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Targets = None
    ) -> Mapping[str, Adapted]:
        sides = lora_lite.target.default_feedforward(model.config.model_type)
        wrong = tuple(s for s in sides if s != "output.dense") or ("nothing",)
        lora_lite.attach(model, lora_lite.IA3Config(feedforward=wrong))
        return {name: adapted(model.get_submodule(name)) for name in lora_lite.adapters(model)}


class AdaptsTheHead(Wrong):
    def spoil(self, model: nn.Module, spec: AdapterSpec, found: dict[str, Adapted]) -> Mapping[str, Adapted]:
        head: Any = model.get_output_embeddings()  # type: ignore[operator]
        name = next(n for n, m in model.named_modules() if m is head)
        lora_lite.attach(head, config(spec, 16, 32))
        return {**found, name: adapted(head)}


class UntiesTheHead(Wrong):
    def spoil(self, model: nn.Module, spec: AdapterSpec, found: dict[str, Adapted]) -> Mapping[str, Adapted]:
        head: Any = model.get_output_embeddings()  # type: ignore[operator]
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        return found


class Doubled(nn.Module):
    """A layer called twice over."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.layer(x)


class ActsTwice(Wrong):
    """Behind the second name of a shared layer stands something else."""

    def spoil(self, model: nn.Module, spec: AdapterSpec, found: dict[str, Adapted]) -> Mapping[str, Adapted]:
        for name, module in model.named_modules(remove_duplicate=False):
            if name not in found and any(module is a.module for a in found.values()):
                parent, _, last = name.rpartition(".")
                setattr(model.get_submodule(parent), last, Doubled(module))
                break
        return found


class Around(nn.Module):
    """What a layer computes, beside an adapter of its own: the adapter's contribution on top."""

    def __init__(self, layer: nn.Module, spec: AdapterSpec) -> None:
        super().__init__()
        self.layer, self.s = layer, spec.alpha / spec.rank
        self.A = nn.Parameter(torch.randn(spec.rank, 16))
        self.B = nn.Parameter(torch.zeros(16, spec.rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + self.s * x @ self.A.T @ self.B.T


class OneForEachName(LoraLite):
    """LoRA on every name of a layer, beside each other or on top of each other."""

    nested = False

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Targets = None
    ) -> Mapping[str, Adapted]:
        found: dict[str, Adapted] = {}
        last: dict[nn.Module, nn.Module] = {}
        for name, layer in list(model.requires_grad_(False).named_modules(remove_duplicate=False)):
            if name.endswith(tuple(targets or ())) or layer in last:
                around = Around(last.get(layer, layer) if self.nested else layer, spec)
                last[layer] = around
                parent, _, own = name.rpartition(".")
                setattr(model.get_submodule(parent), own, around)
                found[name] = Adapted(around, {"A": Slot(around.A), "B": Slot(around.B)})
        return found


class OnTopOfEachOther(OneForEachName):
    nested = True


def test_what_is_said_of_a_shared_layer_was_measured() -> None:
    """Two adapters that act once each do not act twice; nor is any weight written."""
    told = {cls: ask(cls(), "shared").diagnosis for cls in (OneForEachName, OnTopOfEachOther, ActsTwice)}
    assert [d and d.mistake for d in told.values()] == [
        "targets.two_adapters", "targets.acts_otherwise", "targets.acts_otherwise",
    ]  # fmt: skip
    tied = ask(WritesTied(), "shared", "pissa").diagnosis
    assert tied
    assert tied.mistake == "targets.shared_weight"


class WritesTied(Wrong):
    """The residual is written into W itself, which another layer uses too."""

    def spoil(self, model: nn.Module, spec: AdapterSpec, found: dict[str, Adapted]) -> Mapping[str, Adapted]:
        for layer in found.values():
            original = lora_lite.adapters(layer.module)[""].__dict__["original"]
            original.data.copy_(layer.module.weight)
        return found


class SecondBlockScaled(Wrong):
    def spoil(self, model: nn.Module, spec: AdapterSpec, found: dict[str, Adapted]) -> Mapping[str, Adapted]:
        for name, layer in found.items():
            if ".1." in name:
                layer.module.register_forward_hook(lambda m, x, y: y * 1.001)
        return found


class TrainsNorms(Wrong):
    def spoil(self, model: nn.Module, spec: AdapterSpec, found: dict[str, Adapted]) -> Mapping[str, Adapted]:
        for name, parameter in model.named_parameters():
            if "norm" in name.lower():
                parameter.requires_grad_(True)
        return found


class FreezesB(Wrong):
    def spoil(self, model: nn.Module, spec: AdapterSpec, found: dict[str, Adapted]) -> Mapping[str, Adapted]:
        for layer in found.values():
            layer.slots["B"].tensor.requires_grad_(False)
        return found


def drift(weight: torch.Tensor) -> None:
    weight.data.mul_(1.0001)


class DriftingNorm(Wrong):
    """A frozen weight moves a little in every training step."""

    def spoil(self, model: nn.Module, spec: AdapterSpec, found: dict[str, Adapted]) -> Mapping[str, Adapted]:
        norm = next(p for n, p in model.named_parameters() if "norm" in n.lower())
        next(iter(found.values())).module.register_full_backward_hook(lambda m, i, o: drift(norm))
        return found


class DetachKeepsResidual(LoraLite):
    """PiSSA's detach leaves the residual behind, as PEFT's unload does."""

    def detach(self, adapted: Adapted) -> nn.Linear:
        residual = adapted.module.weight.detach().clone()  # type: ignore[operator, union-attr]
        layer = super().detach(adapted)
        layer.weight = nn.Parameter(residual)
        return layer


class NothingIsFine(LoraLite):
    """A target that names nothing gives a model without adapters."""

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Targets = None
    ) -> Mapping[str, Adapted]:
        names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
        return {} if targets and not names & set(targets) else super().adapt_model(model, spec, targets)


class Counts(NothingIsFine):
    """Returns the number of layers wrapped (may be 0 if no pattern matches)."""


class Refuses(NothingIsFine):
    """Raises ValueError if no layer matches, and returns the layers that were adapted."""


@pytest.mark.parametrize(
    ("subject", "tag"), [(Counts(), "OK-doc"), (Refuses(), "BUG"), (NothingIsFine(), "BUG")]
)
def test_a_count_that_may_be_zero_is_documented(subject: LoraLite, tag: str) -> None:
    found = audit(subject, ["lora"], checks=lambda c: c.id == "targets.nothing_named")
    assert [f.tag for f in found.findings] == [tag]


class ShortensLists(LoraLite):
    """Of a long list of targets the last parts of the names are kept."""

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Targets = None
    ) -> Mapping[str, Adapted]:
        if targets and len(targets) >= 20:
            targets = sorted({target.rpartition(".")[2] for target in targets})
        return super().adapt_model(model, spec, targets)


class RefusesLongLists(LoraLite):
    """A long list of targets is too long."""

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Targets = None
    ) -> Mapping[str, Adapted]:
        if targets and len(targets) >= 20:
            raise ValueError("too many targets")
        return super().adapt_model(model, spec, targets)


class Substrings(LoraLite):
    """A target selects every linear layer in whose name it occurs."""

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Targets = None
    ) -> Mapping[str, Adapted]:
        linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
        chosen = None if targets is None else [n for n in linear if any(t in n for t in targets)]
        return super().adapt_model(model, spec, chosen)


class NoPlainModels(LoraLite):
    """Takes models of transformers alone, as it may."""

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Targets = None
    ) -> Mapping[str, Adapted]:
        model.config.to_dict()
        return super().adapt_model(model, spec, targets)


BROKEN = [
    (ShortensLists, "long_list", "lora"),
    (RefusesLongLists, "long_list", "ia3"),
    (Substrings, "long_list", "lora"),
    (NothingIsFine, "nothing_named", "lora"),
    (MissesOne, "default", "lora"),
    (NoRareDefaults, "coverage", "lora"),
    (NoGpt2, "coverage", "ia3"),
    (LooseEndings, "explicit", "lora"),
    (OutputSide, "sides", "ia3"),
    (SidesByShape, "sides", "ia3"),
    (AdaptsTheHead, "heads", "lora"),
    (UntiesTheHead, "heads", "hra"),
    (ActsTwice, "shared", "delora"),
    (WritesTied, "shared", "pissa"),
    (SecondBlockScaled, "model_forward", "dora"),
    (TrainsNorms, "counts", "lora"),
    (FreezesB, "counts", "lora"),
    (DriftingNorm, "counts", "lora"),
    (DetachKeepsResidual, "detach", "pissa"),
]


@pytest.mark.parametrize(("subject", "check", "variant"), BROKEN)
def test_a_broken_subject_is_caught(subject: type[LoraLite], check: str, variant: str) -> None:
    claim = ask(subject(), check, variant)
    assert claim.outcome == "fail", claim.reason
    assert claim.witness is not None
    assert {"architecture", "variant", "targets"} <= set(claim.witness.case)


@pytest.mark.parametrize(
    "check",
    [
        "nothing_named",
        "default",
        "coverage",
        "explicit",
        "long_list",
        "heads",
        "shared",
        "model_forward",
        "counts",
        "detach",
    ],
)
def test_a_right_subject_passes(check: str) -> None:
    assert ask(LoraLite(), check, "pissa").outcome == "pass"


class NoDefaultsForT5(NoRareDefaults):
    """Its defaults are names that T5 does not have."""

    unknown = ("t5",)


class CrashesOnRareOnes(NoRareDefaults):
    """Its table has no such entry, which nobody looks for."""

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Targets = None
    ) -> Mapping[str, Adapted]:
        try:
            return super().adapt_model(model, spec, targets)
        except ValueError:
            raise KeyError(model.config.model_type) from None


def test_a_refusal_in_a_sentence_is_no_fault_and_a_crash_is_one() -> None:
    refused = ask(NoRareDefaults(), "coverage").diagnosis
    assert refused is not None
    assert refused.agrees_with
    assert ask(CrashesOnRareOnes(), "coverage").diagnosis is None


class AllOfTheAttention(LoraLite):
    """By default it adapts more layers than PEFT does."""

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Targets = None
    ) -> Mapping[str, Adapted]:
        here = {name.rpartition(".")[2] for name, _ in model.named_modules()}
        more = [
            n for n in ("q_proj", "k_proj", "v_proj", "query", "key", "value", "q", "k", "v") if n in here
        ]
        return super().adapt_model(model, spec, targets or more or None)


def test_other_defaults_are_one_finding_and_the_rest_is_asked_of_the_layers_that_peft_adapts() -> None:
    others = ask(AllOfTheAttention(), "default")
    assert others.outcome == "fail"
    assert others.diagnosis
    assert others.diagnosis.mistake == "targets.more"
    assert ask(MissesOne(), "default").diagnosis is None
    assert ask(AllOfTheAttention(), "counts").outcome == "pass"
    assert ask(AllOfTheAttention(), "model_forward").outcome == "pass"
    assert ask(MissesOne(), "counts").cause == "told_elsewhere"


class AuthorsDefaults(LoraLite):
    """(IA)³ by default where its authors have it: no gate where a feed-forward block has no second input matrix."""

    odd: ClassVar[Mapping[str, list[str]]] = {}

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Targets = None
    ) -> Mapping[str, Adapted]:
        own = {"t5": ["k", "v", "wi_1"], **self.odd}.get(model.config.model_type)
        there = {name.rpartition(".")[2] for name, _ in model.named_modules()}
        return super().adapt_model(model, spec, targets or (own and sorted(there.intersection(own))))


class AuthorsAndASlip(AuthorsDefaults):
    """The same, and on one architecture a layer is missing."""

    odd: ClassVar[Mapping[str, list[str]]] = {"opt": ["q_proj", "k_proj"]}


def test_defaults_that_the_authors_have_are_no_fault() -> None:
    """The catalogue of disagreements says so; what it does not say is one still."""
    claim = ask(AuthorsDefaults(), "default", "ia3")
    assert claim.outcome == "fail"
    assert claim.diagnosis
    assert (claim.diagnosis.mistake, claim.diagnosis.severity) == ("ia3.feedforward_targets", "minor")
    assert claim.diagnosis.agrees_with == "r-three/t-few"
    assert claim.witness
    assert claim.witness.agree == ("author",)
    slip = ask(AuthorsAndASlip(), "default", "ia3")
    assert slip.witness
    assert (slip.diagnosis, slip.witness.case["architecture"]) == (None, "opt")


OTHERS = (
    "o_proj",
    "out_proj",
    "dense",
    "o",
    "c_attn",
)  # what no method adapts by default in PEFT, nearly everywhere


class OtherDefaults(LoraLite):
    """By default other layers than PEFT's, no more and no fewer of them; by name the right ones."""

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Targets = None
    ) -> Mapping[str, Adapted]:
        here = {name.rpartition(".")[2] for name, _ in model.named_modules()}
        return super().adapt_model(model, spec, targets or sorted(here.intersection(OTHERS)))


class NeverCalled(LoraLite):
    """By default other layers than PEFT's; whichever they are, what is attached to them is called by nobody."""

    others: tuple[str, ...] = OTHERS

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Targets = None
    ) -> Mapping[str, Adapted]:
        model.requires_grad_(False)
        wanted = tuple(f".{t}" for t in targets or self.others)
        layers = {n: m for n, m in model.named_modules() if f".{n}".endswith(wanted) and hasattr(m, "weight")}
        inner = self.inner(model.config.model_type) if targets is None else ()
        return {
            name: self.attached(layer, replace(spec, feedforward=name.endswith(inner)) if inner else spec)
            for name, layer in layers.items()
        }

    def inner(self, model_type: str) -> tuple[str, ...]:
        """By default gated at the input."""
        return ()

    @staticmethod
    def attached(layer: nn.Module, spec: AdapterSpec) -> Adapted:
        W: Any = layer.weight
        out, in_ = W.shape if isinstance(layer, nn.Linear) else W.shape[::-1]
        if spec.variant == "ia3":
            layer.gates = nn.ParameterDict({"l": torch.ones(in_ if spec.feedforward else out)})
        else:
            A, B = torch.randn(spec.rank, in_), torch.zeros(out, spec.rank)
            layer.gates = nn.ParameterDict({"A": A, "B": B})
        return Adapted(layer, {name: Slot(tensor) for name, tensor in layer.gates.items()})


class NeverCalledOnTheSame(NeverCalled):
    """The same on PEFT's layers."""

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Targets = None
    ) -> Mapping[str, Adapted]:
        if targets is None:
            self.others = lora_lite.target.default_targets(model.config.model_type, spec.variant) or ()
        return super().adapt_model(model, spec, targets)

    def inner(self, model_type: str) -> tuple[str, ...]:
        return lora_lite.target.default_feedforward(model_type)


@pytest.mark.parametrize("variant", ["lora", "ia3"])
@pytest.mark.parametrize("subject", [NeverCalled, NeverCalledOnTheSame])
def test_what_is_attached_and_never_called_is_one_finding(subject: type[LoraLite], variant: str) -> None:
    """Beside other defaults, which hide it from nobody and explain it not."""
    found = audit(subject(), [variant], oracles=["peft"], checks=lambda c: c.info.aspect == "targets")
    told = {f.mistake: f for f in found.findings}
    assert ("targets.default" in str(told.values())) == (subject is NeverCalled)
    assert {c.partition("[")[0] for c in told["targets.without_effect"].claims} >= {"targets.model_forward"}
    assert told["targets.without_effect"].severity == "critical"


@pytest.mark.parametrize("variant", ["lora", "ia3"])
def test_with_other_defaults_the_model_is_asked_on_layers_that_both_adapt(variant: str) -> None:
    assert ask(OtherDefaults(), "default", variant).outcome == "fail"
    for check in ("model_forward", "counts"):
        assert ask(OtherDefaults(), check, variant).outcome == "pass"
    found = audit(OtherDefaults(), [variant], oracles=["peft"], checks=lambda c: c.info.aspect == "targets")
    assert ["targets.default" in c for f in found.findings for c in f.claims] == [True]


def test_sides_are_not_asked_where_no_layer_is_adapted_by_both() -> None:
    claim = ask(OtherDefaults(), "sides", "ia3")
    assert (claim.outcome, claim.cause) == ("not_applicable", "told_elsewhere")


class Replaces(LoraLite):
    """Layers are replaced, one by one, by one of ``tests.subjects.wrapped``; there is no GPT-2."""

    wrapper: ClassVar[type[wrapped.Wrapped]] = wrapped.Dora

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        layer = self.wrapper(base, spec)
        return Adapted(layer, layer.slots())

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Targets = None
    ) -> Mapping[str, Adapted]:
        if model.config.model_type == "gpt2":
            raise ValueError("Conv1D is not supported")
        chosen = super().adapt_model(model.requires_grad_(False), spec, targets)
        found = {}
        for name in list(chosen):
            found[name] = self.adapt(lora_lite.detach(model.get_submodule(name)), spec)
            put(model, name, found[name].module)
        return found


class ThroughTheNorm(wrapped.Dora):
    """The norm of DoRA's directions is no constant for the gradient."""

    def norm(self) -> torch.Tensor:
        return self.v().norm(dim=1)


class HalfWayDown(wrapped.Lora):
    """What is passed down to the input is half of the branch's gradient."""

    def branch(self, x: torch.Tensor) -> torch.Tensor:
        half = x / 2 + (x / 2).detach()
        return super().branch(half)


class Norms(Replaces):
    wrapper = ThroughTheNorm


class OtherNorms(OtherDefaults, Norms):
    """The same, with other defaults."""


class Inputs(Replaces):
    wrapper = HalfWayDown


OF_LAYERS = ("forward.random_parameters", "forward.gradients", "forward.input_gradient", "step0.gradients")


@pytest.mark.parametrize(
    ("subject", "variant", "cause"),
    [
        (Norms, "dora", "forward.gradients"),
        (OtherNorms, "dora", "forward.gradients"),
        (Inputs, "lora", "forward.input_gradient"),
    ],
)
def test_a_models_gradient_follows_from_its_layers(subject: type[LoraLite], variant: str, cause: str) -> None:
    asked = (*OF_LAYERS, "targets.default", "targets.model_forward")
    found = audit(subject(), [variant], oracles=["peft"], checks=lambda c: c.id in asked)
    (told,) = [f for f in found.findings if any("targets.model_forward" in c for c in f.claims)]
    assert any(cause in claim for claim in told.claims)
    assert not any("targets.default" in claim for claim in told.claims)


class HalfTheGradient(Wrong):
    """In a whole model half of the gradient reaches the second block."""

    def spoil(self, model: nn.Module, spec: AdapterSpec, found: dict[str, Adapted]) -> Mapping[str, Adapted]:
        for name, layer in found.items():
            if ".1." in name:
                layer.module.register_forward_hook(lambda m, x, y: y / 2 + y.detach() / 2)
        return found


@pytest.mark.parametrize(
    ("subject", "mistake", "words"),
    [
        (HalfTheGradient, "targets.gradients", "follow this gradient"),
        (DriftingNorm, "targets.training", "a training step changes"),
        (SecondBlockScaled, None, "follow this quantity through the adapted model"),
    ],
)
def test_the_remedy_speaks_of_what_differs(subject: type[LoraLite], mistake: str | None, words: str) -> None:
    asked = (*OF_LAYERS, "targets.model_forward")
    found = audit(subject(), ["lora"], oracles=["peft"], checks=lambda c: c.id in asked)
    (told,) = found.findings
    assert told.mistake == mistake
    assert words in instruction(told, found.run.claims)


class NamesOfBert(NothingIsFine):
    """By default BERT's names on every architecture."""

    says: ClassVar[str] = ""

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Targets = None
    ) -> Mapping[str, Adapted]:
        found = super().adapt_model(model, spec, targets or ("query", "value"))
        if not found and self.says:
            warnings.warn(self.says, stacklevel=2)
        return found


class SaysSo(NamesOfBert):
    says = "no layer was adapted"


class SaysSomethingElse(NamesOfBert):
    says = "this method is experimental"


@pytest.mark.parametrize(
    ("subject", "silent"), [(NamesOfBert, True), (SaysSomethingElse, True), (SaysSo, False)]
)
def test_defaults_that_adapt_nothing_are_told_as_that(subject: type[LoraLite], silent: bool) -> None:
    told = ask(subject(), "default").diagnosis
    assert told is not None
    assert told.mistake == "targets.default_nothing"
    assert told.summary.endswith("nothing says so") == silent
    assert told.remedy
    assert ask(subject(), "model_forward").outcome == "pass"


class WarnsOfNothing(NothingIsFine):
    """It says aloud that a target names nothing, by a logger that hands nothing on to the root."""

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Targets = None
    ) -> Mapping[str, Adapted]:
        found = super().adapt_model(model, spec, targets)
        if not found:
            logger = logging.getLogger("tests.own")
            logger.propagate = False
            logger.warning("No modules matched the targets %s", targets)
        return found


class RefusesWholeNames(LoraLite):
    """Targets are last parts of names."""

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Targets = None
    ) -> Mapping[str, Adapted]:
        if any("." in target for target in targets or ()):
            raise ValueError(f"no layer is called {targets}")
        return super().adapt_model(model, spec, targets)


class KnowsNoWholeNames(RefusesWholeNames):
    """Targets are last parts of names, and others are passed over without a word."""

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Targets = None
    ) -> Mapping[str, Adapted]:
        kept = None if targets is None else [target for target in targets if "." not in target]
        return {} if kept == [] else super().adapt_model(model, spec, kept)


class WarnsOfWholeNames(KnowsNoWholeNames):
    """The same, and it is said aloud."""

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Targets = None
    ) -> Mapping[str, Adapted]:
        if any("." in target for target in targets or ()):
            warnings.warn(f"target modules not found: {targets}", stacklevel=2)
        return super().adapt_model(model, spec, targets)


class TheLastTarget(LoraLite):
    """Of several targets the last one is kept."""

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Targets = None
    ) -> Mapping[str, Adapted]:
        return super().adapt_model(model, spec, None if targets is None else list(targets)[-1:])


def test_one_of_several_targets_is_told_as_that() -> None:
    found = ask(TheLastTarget(), "explicit").diagnosis
    assert found is not None
    assert found.mistake == "targets.one_of_several"


def test_a_warning_that_a_target_names_nothing_is_enough() -> None:
    assert ask(WarnsOfNothing(), "nothing_named").outcome == "pass"


def test_whole_names_may_be_refused_and_are_one_finding_where_they_are_passed_over() -> None:
    assert ask(RefusesWholeNames(), "explicit").outcome in ("pass", "not_applicable")
    passed_over = ask(KnowsNoWholeNames(), "explicit").diagnosis
    assert passed_over is not None
    assert passed_over.mistake == "targets.last_part_alone"
    assert ask(WarnsOfWholeNames(), "explicit").outcome == "pass"
    assert ask(KnowsNoWholeNames(), "shared").cause == "told_elsewhere"


def test_a_library_may_have_no_defaults_for_a_rare_architecture() -> None:
    assert ask(NoRareDefaults(), "default").outcome == "pass"
    assert ask(NoRareDefaults(), "sides", "ia3").outcome == "pass"
    assert ask(NoDefaultsForT5(), "default").outcome == "pass"
    assert ask(NoDefaultsForT5(), "detach").outcome == "pass"
    assert ask(NoConv1D(), "coverage").outcome == "pass"
    assert ask(NoConv1D(), "default").outcome == "pass"
    assert ask(WarnsOfConv1D(), "explicit").outcome == "pass"
    assert ask(SilentOnConv1D(), "explicit").outcome == "fail"
    assert CHECKS["targets.coverage"].info.severity == "minor"


def test_a_target_inside_another_name_is_told_as_that() -> None:
    found = ask(Substrings(), "long_list").diagnosis
    assert found is not None
    assert found.mistake == "targets.inside_a_name"


class SubstringsOfLastParts(KnowsNoWholeNames):
    """A target is looked for anywhere in the last part of a name."""

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Targets = None
    ) -> Mapping[str, Adapted]:
        kept = [target for target in targets or () if "." not in target]
        last = {n: n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear)}
        found = [n for n, part in last.items() if any(target in part for target in kept)]
        return super(RefusesWholeNames, self).adapt_model(model, spec, found) if found else {}


def test_inside_the_last_part_of_a_name_is_inside_a_name() -> None:
    found = ask(SubstringsOfLastParts(), "long_list").diagnosis
    assert found is not None
    assert found.mistake == "targets.inside_a_name"
    assert ask(KnowsNoWholeNames(), "long_list").outcome == "not_applicable"


class EndsWith(LoraLite):
    """A layer whose name ends with a target is selected, at a dot or not."""

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Targets = None
    ) -> Mapping[str, Adapted]:
        names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
        found = [n for n in names if n.endswith(tuple(targets or ()))]
        return super().adapt_model(model, spec, found) if found else {}


def test_an_ending_that_is_no_part_is_told_as_that() -> None:
    found = ask(EndsWith(), "long_list").diagnosis
    assert found is not None
    assert found.mistake == "targets.ends_within_a_part"


class OneAdapterForAll(Wrong):
    """Layers of one shape are given the first one's tensors."""

    def spoil(self, model: nn.Module, spec: AdapterSpec, found: dict[str, Adapted]) -> Mapping[str, Adapted]:
        first: dict[tuple[int, ...], Adapted] = {}
        return {n: self.shown(first, a) for n, a in found.items()}

    @staticmethod
    def shown(first: dict[tuple[int, ...], Adapted], one: Adapted) -> Adapted:
        shape = tuple(d for slot in one.slots.values() for d in slot.tensor.shape)
        return Adapted(one.module, first.setdefault(shape, one).slots)


def test_layers_that_have_one_adapter_together_are_told() -> None:
    told = ask(OneAdapterForAll(), "explicit").diagnosis
    assert told is not None
    assert told.mistake == "targets.one_adapter"


class LeavesTheRest(Wrong):
    """The adapted layers are frozen, and nothing else is."""

    def spoil(self, model: nn.Module, spec: AdapterSpec, found: dict[str, Adapted]) -> Mapping[str, Adapted]:
        within = {id(p) for a in found.values() for p in a.module.parameters()}
        for parameter in model.parameters():
            if id(parameter) not in within:
                parameter.requires_grad_(True)
        return found


@pytest.mark.parametrize(
    ("subject", "mistake", "severity"),
    [(LeavesTheRest, "targets.rest_left", "minor"), (TrainsNorms, None, None)],
)
def test_what_is_left_to_train_is_told_from_what_is_made_to(
    subject: type[LoraLite], mistake: str | None, severity: str | None
) -> None:
    told = ask(subject(), "counts").diagnosis
    assert (told.mistake, told.severity) == (mistake, severity) if told else mistake is None


class HeadToo(LoraLite):
    """By default every linear layer is adapted, the head, too."""

    more: ClassVar[tuple[type, ...]] = (nn.Linear,)

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Targets = None
    ) -> Mapping[str, Adapted]:
        if targets is None:
            targets = [n for n, m in model.named_modules() if isinstance(m, self.more)]
        return super().adapt_model(model, spec, targets)


def test_more_layers_are_more_layers_with_the_head_among_them_too() -> None:
    """The head is a finding of its own."""
    told = ask(HeadToo(), "default").diagnosis
    assert told is not None
    assert told.mistake == "targets.more"
    assert ask(HeadToo(), "heads").outcome == "fail"


class MoreOnLlama(LoraLite):
    """On Llama alone it adapts the whole attention by default."""

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Targets = None
    ) -> Mapping[str, Adapted]:
        own = ["q_proj", "k_proj", "v_proj", "o_proj"] if model.config.model_type == "llama" else None
        return super().adapt_model(model, spec, targets or own)


@pytest.mark.parametrize(
    ("docstring", "stated"),
    [
        ("`q_proj`/`k_proj`/`o_proj` must be linear; `v_proj` may be absent.", True),
        ("Adapts q_proj and v_proj.", False),
        ("Adapts every projection of the attention.", False),
    ],
)
def test_more_layers_on_one_architecture_are_a_choice_where_they_are_named(
    docstring: str, stated: bool
) -> None:
    told = ask(MoreOnLlama(), "default").diagnosis
    assert told is not None
    assert told.mistake == "targets.more_here"
    assert (stating([DocstringPart("", 0, docstring)], told.documented_by) is not None) == stated


class FoldsIntoTheEmbedding(LoraLite):
    """Merging moves the embedding, which has no adapter: a head's update in a weight that both share."""

    def merge_model(self, model: nn.Module) -> nn.Module:
        merged = super().merge_model(model)
        merged.get_input_embeddings().weight.data.mul_(1.5)  # type: ignore[operator]
        return merged


class FoldsHalf(LoraLite):
    """What is merged is off, and the embedding stays."""

    def merge_model(self, model: nn.Module) -> nn.Module:
        merged = super().merge_model(model)
        next(m for m in merged.modules() if isinstance(m, nn.Linear)).weight.data.mul_(1.5)
        return merged


@pytest.mark.parametrize(
    ("subject", "mistake"), [(FoldsIntoTheEmbedding, "merge.tied_too"), (FoldsHalf, None)]
)
def test_a_tied_weight_that_moves_with_a_merge_is_told(subject: type[LoraLite], mistake: str | None) -> None:
    load_checks()
    (claim,) = claims_for(
        subject(),
        variants=["lora"],
        checks=lambda c: c.id == "merge.model",
        profile=Profile("default", 12, 0),
    )
    assert claim.outcome == "fail"
    assert (claim.diagnosis.mistake if claim.diagnosis else None) == mistake


def test_a_library_may_take_models_of_transformers_alone() -> None:
    assert ask(NoPlainModels(), "long_list").outcome == "not_applicable"


class BreaksModels(LoraLite):
    """The model does not run after the library has done something to it."""

    name = "breaks_models"

    def adapt_model(
        self, model: nn.Module, spec: AdapterSpec, targets: Targets = None
    ) -> Mapping[str, Adapted]:
        found = super().adapt_model(model, spec, targets)
        model.register_forward_hook(self.fail if self.at == "adapt" else lambda *a: None)
        return found

    def merge_model(self, model: nn.Module) -> nn.Module:
        if self.at == "refused":
            raise ValueError("GPT-2 is not supported for merging")
        model.register_forward_hook(self.fail)
        return model

    at = "adapt"

    def fail(self, *_: Any) -> None:
        raise RuntimeError("the library's own mistake")


@pytest.mark.parametrize(
    ("at", "cause", "where"),
    [
        ("adapt", "wrapper", "the adapted model's forward"),
        ("merge", "wrapper", "the merged model's forward"),
        ("refused", "not_offered", "not supported for merging"),
    ],
)
def test_a_model_that_does_not_run_is_not_the_audits_mistake(
    at: str, cause: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BreaksModels, "at", at)
    load_checks()
    quick = Profile("quick", 3, 0)
    (claim,) = claims_for(
        BreaksModels(), variants=["lora"], checks=lambda c: c.id == "merge.model", profile=quick
    )
    assert claim.cause == cause, claim
    assert where in str(claim.reason)


def test_sides_pass_and_are_asked_of_ia3_alone() -> None:
    assert ask(LoraLite(), "sides", "ia3").outcome == "pass"
    assert not claims_for(LoraLite(), variants=["hra"], checks=lambda c: c.id == "targets.sides")


@pytest.mark.parametrize("check", ["nothing_named", "default", "shared", "model_forward", "detach"])
def test_a_subject_for_layers_alone_is_not_asked(check: str) -> None:
    claim = ask(Equation(), check)
    assert claim.outcome == "not_applicable"
    assert claim.reason == "paper offers no adapt_model"


@pytest.mark.parametrize(
    ("check", "least"),
    [("default", 22), ("coverage", 15), ("counts", 9), ("detach", 8), ("model_forward", 3)],
)
def test_many_architectures_are_visited(monkeypatch: pytest.MonkeyPatch, check: str, least: int) -> None:
    seen: set[str] = set()
    base = ModelCase.base
    monkeypatch.setattr(ModelCase, "base", lambda case, *a: seen.add(case.architecture) or base(case, *a))
    assert ask(LoraLite(), check, "dora").outcome == "pass"
    assert len(seen) >= least, seen


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_a_case_builds_the_same_model_every_time(architecture: str) -> None:
    case = ModelCase(AdapterSpec("lora"), architecture, seed=3)
    first, second = case.base().state_dict(), case.base().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    trivial = [n for n, p in case.base().named_parameters() if p.std() == 0]
    assert not trivial


@pytest.mark.parametrize("architecture", ["t5", "bert"])
def test_a_fresh_model_is_tied_within_and_shares_nothing_without(architecture: str) -> None:
    first, second = blank(architecture), blank(architecture)
    assert first.get_input_embeddings().weight is first.get_output_embeddings().weight
    own = {t.data_ptr() for t in first.state_dict().values()}
    assert own.isdisjoint(t.data_ptr() for t in second.state_dict().values())
    assert first.config is not second.config


def test_no_check_of_whole_models_is_explained_by_a_layers_mistake() -> None:
    load_checks()
    adapted: list[Check] = [c for c in CHECKS.values() if c.id.startswith("targets.")]
    assert len(adapted) == 11
    assert not any(c.diagnose for c in adapted)


@pytest.mark.parametrize(
    ("told", "docstring", "stated"),
    [
        (
            INSIDE_A_NAME,
            "Directory containing weights. strict: Whether to strictly match parameter names",
            False,
        ),
        (INSIDE_A_NAME, "Every linear layer whose name contains one of the targets.", True),
        (INSIDE_A_NAME, "Targets are matched as substrings.", True),
        (INSIDE_A_NAME, "Replaces matched ``nn.Linear`` layers with wrappers.", False),
        (INSIDE_A_NAME, "Layers that match one of the patterns are adapted.", True),
        (PATHS, "It cannot handle cases like 'intermediate.dense', but works for this project.", True),
        (PATHS, "Adapts the layers that are named.", False),
        (HEADS_TOO, "If None, adapts all Linear and Conv2d layers.", True),
        (HEADS_TOO, "Adapts the layers that are named.", False),
    ],
)
def test_what_a_docstring_says_of_targets(told: Diagnosis, docstring: str, stated: bool) -> None:
    """A word on parameter names of a file is none on targets."""
    found = any(re.search(phrase, docstring, re.IGNORECASE) for phrase in told.documented_by)
    assert found == stated
