"""A whole model with adapters on it: built from a case, its adapters' values in and out, trained, taken apart."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.cases.tiny_models import EXPECTED, ModelCase, loss, put
from harness.compare import rounding
from harness.compare.context import Context, Refused
from harness.compare.ear import heard
from harness.compare.layer import Layer, SubjectRaised, WrongType, answering, as_layer
from harness.compare.outcome import NotOffered, OutsideDomain
from harness.compare.refusals import is_crash
from oracles.implementation import Implementation, Unsupported
from oracles.seeding import seed_torch

STEPS, RATE, TWINS = 10, 0.05, 1
Values = dict[tuple[str, str], Tensor]  # (layer, canonical tensor) -> value
Quantities = dict[str, Tensor]


@dataclass
class AdaptedModel:
    """A model in which ``layers`` carry adapters of ``who``."""

    who: str
    model: nn.Module
    layers: dict[str, Layer]

    def slots(self) -> Iterator[tuple[str, str, Layer]]:
        """Layer name, tensor name, layer; in the layers' order by name."""
        for name, layer in sorted(self.layers.items()):
            yield from ((name, tensor, layer) for tensor in layer.names)

    def values(self) -> Values:
        """Every slot's value, float64."""
        return {(name, tensor): layer.value(tensor) for name, tensor, layer in self.slots()}

    def write(self, values: Values) -> None:
        """Write values into the slots that exist with the same shape."""
        for (name, tensor), value in values.items():
            if name in self.layers:
                self.layers[name].write({tensor: value})

    def trained(self) -> list[Tensor]:
        """The tensors of the slots that want a gradient, each once."""
        raw = [layer.raw(tensor) for _, tensor, layer in self.slots()]
        return list({id(t): t for t in raw if t.requires_grad}.values())

    def state(self) -> dict[str, Tensor]:
        """Every parameter and buffer of the model by name, live."""
        return dict(self.model.state_dict(keep_vars=True))


def adapted_by(who: Implementation, case: ModelCase) -> AdaptedModel:
    """``who`` on a fresh model of the case, torch's generator seeded from it.

    Raises OutsideDomain where the model cannot be built in the subject's own environment.
    """
    seed_torch(case.seed)
    model = case.base()
    try:
        with answering(who.name, "adapt_model", of=case.architecture):
            found: Any = who.adapt_model(model, case.spec, case.given_targets)
    except Unsupported as why:
        if getattr(why, "lacking", False):
            raise OutsideDomain(f"in the subject's environment there is {why}") from why
        raise
    if not isinstance(found, Mapping):
        raise WrongType(f"{who.name}: adapt_model returned {type(found).__name__}, expected a mapping")
    return AdaptedModel(who.name, model, {name: as_layer(a, who, "adapt_model") for name, a in found.items()})


DENIES = re.compile(r"\b(no|none|not|nothing|unsupported|mismatch)\b", re.IGNORECASE)


def subject_on(context: Context, case: ModelCase) -> AdaptedModel:
    """The subject on the case's model.

    Raises Refused where it does not take GPT-2's transposed layers (by an exception, or by a warning with none of them
    adapted), and where it has no default targets for one of the rarer architectures (`targets.coverage` asks about
    those) or says so of any but the first; NotOffered where it says that it does not take whole names as targets, or
    that it knows no layer of an ending.
    """
    try:
        found = adapted_by(context.subject, case)
        if case.kind.conv1d and not found.layers and any(map(DENIES.search, heard(context.subject.name))):
            raise Refused
        return found
    except (Unsupported, SubjectRaised) as why:
        says_so = isinstance(why, SubjectRaised) and not is_crash(why)
        if says_so and any("." in target for target in case.targets or ()):
            raise NotOffered(f"whole names as targets: {why}", "adapt_model") from None
        if says_so and any(target in str(why) for target in case.targets or ()):
            raise NotOffered(f"endings of names as targets: {why}", "adapt_model") from None
        common = EXPECTED[:1] if says_so else EXPECTED
        rare = case.targets is None and case.architecture not in common
        if (case.kind.conv1d or rare) and offers_models(context.subject):
            raise Refused from None
        raise


def offers_models(who: Implementation) -> bool:
    """Whether it adapts whole models at all."""
    return type(who).adapt_model is not Implementation.adapt_model


def reference_on(context: Context, case: ModelCase) -> AdaptedModel:
    """The oracle on the case's model. Raises Refused where the reference itself will not have this model."""
    try:
        return adapted_by(context.oracle, case)
    except (SubjectRaised, Unsupported):
        raise Refused from None


@dataclass(frozen=True)
class Places:
    """Which layers of a model are adapted, and how many numbers of it then want a gradient."""

    layers: frozenset[str]
    trainable: int


def reference_places(context: Context, case: ModelCase) -> Places:
    """Where the oracle puts its adapters; built once for all the checks that share the case. Raises Refused."""
    found = places_of(context.oracle, case)
    if found is None:
        raise Refused
    return found


@functools.lru_cache(maxsize=512)
def places_of(who: Implementation, case: ModelCase) -> Places | None:
    """Where it puts its adapters; None where it will not have the model."""
    try:
        adapted = adapted_by(who, case)
    except (SubjectRaised, Unsupported):
        return None
    return Places(frozenset(adapted.layers), count(adapted))


def count(adapted: AdaptedModel) -> int:
    """How many numbers of the model want a gradient."""
    return sum(p.numel() for p in adapted.model.parameters() if p.requires_grad)


def far(adapted: AdaptedModel, case: ModelCase, stream: int = 3) -> Values:
    """Values far from initialisation for every slot that has such."""
    generator = case.generator(stream)
    found: Values = {}
    for name, tensor, layer in adapted.slots():
        record = case.variant.tensor(tensor)
        if record is not None and record.far is not None:
            found[name, tensor] = record.far(tuple(layer.view(tensor).shape), case.spec, generator)
    return found


def nudged(values: Values, generator: torch.Generator) -> Values:
    """Every value times (1 + u N(0, 1)), u float32's roundoff: a start that no float32 code can tell apart."""
    unit = rounding.roundoff(torch.float32)
    return {
        key: v * (1 + unit * torch.randn(v.shape, generator=generator, dtype=v.dtype))
        for key, v in values.items()
    }


def observe(adapted: AdaptedModel, case: ModelCase) -> Quantities:
    """Logits, loss, the gradient of every adapter parameter, and its value after ten steps of SGD; float64."""
    adapted.model.zero_grad()
    y, error = _gradients(adapted, case)
    found = {"logits": y.detach().double(), "loss": error.detach().double()}
    slots = [(n, t, layer) for n, t, layer in adapted.slots() if layer.raw(t).requires_grad]
    found |= {f"gradient of {n} {t}": layer.gradient(t) for n, t, layer in slots}
    losses = train(adapted, case)
    found["losses of ten steps"] = torch.tensor(losses, dtype=torch.float64)
    return found | {f"{n} {t} after {STEPS} steps": layer.value(t) for n, t, layer in slots}


def _gradients(adapted: AdaptedModel, case: ModelCase) -> tuple[Tensor, Tensor]:
    with answering(adapted.who, f"forward and backward of the adapted {case.architecture}"):
        y, error = loss(adapted.model, case)
        if error.requires_grad:
            error.backward()
    return y, error


def train(adapted: AdaptedModel, case: ModelCase, steps: int = STEPS) -> list[float]:
    """``steps`` steps of SGD on the adapters' parameters; the loss before each."""
    adapted.model.train()
    parameters = adapted.trained()
    optimiser = torch.optim.SGD(parameters, lr=RATE) if parameters else None
    losses = []
    for _ in range(steps):
        adapted.model.zero_grad()
        for parameter in parameters:
            parameter.grad = None
        losses.append(float(_gradients(adapted, case)[1].detach()))
        if optimiser is not None:
            optimiser.step()
    return losses


def noise(context: Context, case: ModelCase, start: Values, exact: Quantities) -> dict[str, float]:
    """How far float32 takes the reference itself from its float64 values, as Frobenius norms.

    It is run again in float32 from starts one roundoff away; a floor of one roundoff covers lucky draws.
    """
    unit = rounding.roundoff(torch.float32)
    total = {name: unit * rounding.norm(value) for name, value in exact.items()}
    generator = case.generator(4)
    for _ in range(TWINS):
        twin = reference_on(context, case)
        twin.write(nudged(start, generator))
        for name, value in observe(twin, case).items():
            total[name] = max(total[name], rounding.norm(value - exact[name]))
    return total


def take_off(who: Implementation, adapted: AdaptedModel) -> None:
    """Detach every adapter; what ``detach`` returns stands where the layer stood."""
    for name, layer in adapted.layers.items():
        with answering(who.name, f"detach of {name}"):
            found = who.detach(layer.adapted)
        if not isinstance(found, nn.Module):
            raise WrongType(f"{who.name}: detach returned {type(found).__name__}, expected a layer")
        if adapted.model.get_submodule(name) is not found:
            put(adapted.model, name, found)
