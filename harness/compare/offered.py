"""Which of the optional methods a subject offers, asked once of each variant: sequences are made of those alone."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from harness.cases.kind_cases import KINDS
from harness.compare.layer import answering
from harness.compare.outcome import NotOffered
from oracles.implementation import Adapted, AdapterSpec, Implementation, Unsupported

Probe = Callable[[Implementation, Adapted, AdapterSpec, Path], object]
PROBES: dict[str, Probe] = {
    "add_adapter": lambda who, layer, spec, folder: who.add_adapter(layer, "b", spec),
    "set_adapters": lambda who, layer, spec, folder: who.set_adapters(layer, ("default",)),
    "delete_adapter": lambda who, layer, spec, folder: _delete(who, layer, spec),
    "merge_in_place": lambda who, layer, spec, folder: who.merge_in_place(layer),
    "unmerge": lambda who, layer, spec, folder: _unmerge(who, layer),
    "merge": lambda who, layer, spec, folder: who.merge(layer),
    "detach": lambda who, layer, spec, folder: who.detach(layer),
    "save": lambda who, layer, spec, folder: who.save(layer, folder / "probe"),
    "load": lambda who, layer, spec, folder: _load(who, layer, spec, folder),
}
_KNOWN: WeakKeyDictionary[Implementation, dict[tuple[str, str], str]] = WeakKeyDictionary()


def _delete(who: Implementation, layer: Adapted, spec: AdapterSpec) -> None:
    who.add_adapter(layer, "b", spec)
    who.delete_adapter(layer, "b")


def _unmerge(who: Implementation, layer: Adapted) -> None:
    who.merge_in_place(layer)
    who.unmerge(layer)


def _load(who: Implementation, layer: Adapted, spec: AdapterSpec, folder: Path) -> None:
    who.save(layer, folder / "probe")
    try:
        who.load(_base(who), spec, folder / "probe")
    except Unsupported:
        who.load(_base(who, bias=False), spec, folder / "probe")


def adapts_linear(who: Implementation) -> bool:
    """Whether linear layers are among those that the subject adapts; who names none of the kinds adapts these."""
    return "linear" in who.layers or not any(kind in who.layers for kind in KINDS)


def _base(who: Implementation, bias: bool = True) -> Any:
    """A linear layer; of who takes none a convolution, or an embedding."""
    base: Any = nn.Linear(4, 3, bias)
    if not adapts_linear(who):
        base = nn.Conv2d(4, 3, 1, bias=bias) if "conv2d" in who.layers else nn.Embedding(4, 3)
    with torch.no_grad():
        base.weight.copy_(torch.arange(12.0).reshape(base.weight.shape).cos())
        if getattr(base, "bias", None) is not None:
            base.bias.copy_(torch.arange(3.0).sin())
    return base


def why_not(who: Implementation, spec: AdapterSpec, method: str) -> str:
    """In the subject's words, why it does not offer ``method``; empty where it does, well or not."""
    known = _KNOWN.setdefault(who, {})
    key = (spec.variant, method)
    if key not in known:
        known[key] = _asked(who, spec, PROBES[method])
    return known[key]


def _asked(who: Implementation, spec: AdapterSpec, probe: Probe) -> str:
    with tempfile.TemporaryDirectory(prefix="audit-") as folder:
        adapted, own = _adapted(who, spec)
        try:
            probe(who, adapted, own, Path(folder))
        except Unsupported as why:
            return str(why) or "not offered"
        except Exception:
            return ""  # it is offered, and what it does wrongly is for the claims to find out
    return ""


def _adapted(who: Implementation, spec: AdapterSpec) -> tuple[Adapted, AdapterSpec]:
    """A small layer and the spec of its adapter: what the subject cannot express says nothing of its methods.

    Raises what it raised last where it takes neither a plain spec, nor ``spec``, with a bias or without.
    """
    plain = who.nearest(AdapterSpec(spec.variant, rank=2, alpha=3.0))
    small = dataclasses.replace(spec, rank=2, alpha=2.0 if spec.alpha == spec.rank else spec.alpha)
    tried = [(each, bias) for each in (plain, small, spec) for bias in (True, False)]
    for each, bias in tried[:-1]:
        with suppress(Exception):
            return who.adapt(_base(who, bias), each), each
    with answering(who.name, "adapt"):
        return who.adapt(_base(who, bias=False), spec), spec


def offers(who: Implementation, spec: AdapterSpec, method: str) -> bool:
    """Whether the subject offers an optional method."""
    return not why_not(who, spec, method)


def need(who: Implementation, spec: AdapterSpec, methods: tuple[str, ...]) -> None:
    """Raise NotOffered unless the subject offers them all."""
    for method in methods:
        why = why_not(who, spec, method)
        if why:
            raise NotOffered(f"{method}: {why}", method)
