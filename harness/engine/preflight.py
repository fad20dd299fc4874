"""Smoke first: is the *wrapper* around the subject sound? A mistake there is not laid at the library's door."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from harness.cases.layer_cases import Case
from harness.compare import isolation
from harness.compare.abilities import abilities_of
from harness.compare.layer import BadAnswer, Layer, SubjectRaised, adapt, said
from oracles.implementation import AdapterSpec, Implementation, Unsupported
from oracles.seeding import seed_torch
from oracles.variants import Variant
from refs.vocabulary import Cause


@dataclass(frozen=True)
class Broken:
    """Why no claim of a variant can be asked.

    A broken wrapper leaves them unverified, a subject that hangs is an error, one that has not even an ordinary
    adapter of this variant makes them not applicable.
    """

    outcome: Literal["unverified", "error", "not_applicable"]
    cause: Cause
    sentence: str


class Replaced(Exception):
    """A call puts another tensor in the place of one of the adapter's: no slot shows what acts."""


def broken_wrapper(subject: Implementation, variant: Variant) -> Broken | None:
    """What keeps a variant from being audited at all, or None. Anything else that is wrong is the claims' to say."""
    found = abilities_of(subject, variant.id)
    case = Case(AdapterSpec(variant.id, rank=2, alpha=3.0), 5, 4, bias=True, batch=(3,))
    try:
        return _broken(subject, found.ordinary or case)
    except Unsupported as why:
        return Broken(
            "not_applicable", "no_variant", f"{subject.name} offers no ordinary {variant.title}: {said(why)}"
        )


def _broken(subject: Implementation, case: Case) -> Broken | None:
    try:
        with isolation.global_state(subject), isolation.time_limit(subject):
            seed_torch(0)
            sentence = _inspect(adapt(subject, case.base(), case.spec), case)
    except Replaced as error:
        return Broken("error", "bad_answer", str(error))
    except BadAnswer as error:
        sentence = str(error)
    except isolation.ClaimTimeout as error:
        return Broken("error", "hangs", f"{subject.name} hangs on a small layer: {error}")
    except isolation.SubjectDied as error:
        return Broken("error", "died", f"{subject.name} does not survive a small layer: {error}")
    except (SubjectRaised, isolation.StateChanged):
        return None
    except Unsupported:
        raise
    except Exception as error:
        sentence = f"looking at the slots raised {type(error).__name__}: {said(error)}"
    return Broken("unverified", "wrapper", f"broken wrapper: {sentence}") if sentence else None


def _inspect(layer: Layer, case: Case) -> str | None:
    if not isinstance(layer.module, torch.nn.Module):
        return f"Adapted.module is a {type(layer.module).__name__}, expected an nn.Module"
    if not layer.names:
        return "Adapted.slots is empty: there is nothing to audit"
    for name in layer.names:
        if sentence := _inspect_slot(layer, name):
            return sentence
    return _inspect_call(layer, case)


def _inspect_slot(layer: Layer, name: str) -> str | None:
    tensor = layer.raw(name)
    if not isinstance(tensor, torch.Tensor):
        return f"slot {name!r} holds a {type(tensor).__name__}, expected a Tensor"
    view = layer.view(name)
    if not isinstance(view, torch.Tensor):
        return f"the view of slot {name!r} returns a {type(view).__name__}, expected a Tensor"
    if not layer.slots[name].is_view:
        return _inspect_functions(layer, name)
    if view.numel() and view.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr():
        return f"the view of slot {name!r} does not share storage with its tensor: writes do not go through"
    return None


def _inspect_functions(layer: Layer, name: str) -> str | None:
    """A slot whose value is a function of its tensor: what is written has to be read back."""
    before = layer.value(name)
    layer.write({name: before + 1})
    gap = float((layer.value(name) - before - 1).abs().max()) if before.numel() else 0.0
    layer.write({name: before})
    if not gap < 1e-3:
        return f"what is written to slot {name!r} is not read back: {gap:.3g} away; expected `write` to undo `read`"
    return None


def _inspect_call(layer: Layer, case: Case) -> str | None:
    there = [name for name in layer.names if _registered(layer, name)]
    shape, expected = tuple(layer(case.x).shape), (*case.x.shape[:-1], case.out_features)
    if shape != expected:
        return f"module(x) has shape {shape}, expected {expected}"
    adrift = [name for name in layer.names if not _registered(layer, name)]
    if gone := [name for name in there if name in adrift]:
        said = f"calling the layer puts another tensor in the place of {gone[0]}: an optimiser or a handle made before"
        raise Replaced(f"{said} has one that acts no more")
    if not adrift:
        return None
    generator = case.generator(5)
    for name in layer.names:
        _shake(layer, name, generator)
    for name in adrift:
        before = layer(case.x).detach().clone()
        _shake(layer, name, generator)
        if torch.equal(layer(case.x), before):
            return f"slot {name!r} is no tensor of the module, and writing to it does not change module(x): a copy"
    return None


def _shake(layer: Layer, name: str, generator: torch.Generator) -> None:
    value = layer.value(name)
    layer.write({name: torch.randn(value.shape, generator=generator, dtype=torch.float64) + 2})


def _registered(layer: Layer, name: str) -> bool:
    owned = [*layer.module.parameters(), *layer.module.buffers()]
    tensor = layer.raw(name)
    return any(
        t is tensor or t.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr() for t in owned
    )
