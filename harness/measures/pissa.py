"""How much the references of PiSSA disagree: one measure per catalogued entry."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from harness.measures.measuring import apart, base, case, measures, value
from oracles.authors.base import plain
from oracles.implementation import AdapterSpec
from oracles.peft import Peft


@measures("pissa.residual")
def _residual() -> float:
    spec, layer, x = AdapterSpec("pissa", 2, 2.0), base(4, 6, torch.float32), torch.randn(5, 6)
    kept = case("pissa", "author", "6x4-r2-init-float32")
    assert "base_layer.weight" in kept.state
    adapted = Peft().adapt(layer, spec)
    with tempfile.TemporaryDirectory() as folder:
        Peft().save(adapted, Path(folder))
        loaded = Peft().load(plain(value(adapted, "W"), None), spec, Path(folder))
    return apart(loaded.module(x).detach(), adapted.module(x).detach())


@measures("pissa.alpha")
def _alpha() -> float:
    layer = base(dtype=torch.float32)
    sizes = [
        value(Peft().adapt(plain(layer.weight, None), AdapterSpec("pissa", 2, alpha)), "A").norm()
        for alpha in (8.0, 2.0)
    ]
    return float(sizes[0] / sizes[1])
