"""How much the references of LoRA disagree: one measure per catalogued entry."""

from __future__ import annotations

import torch

from harness.measures.measuring import author_of, base, measures, value
from oracles.implementation import AdapterSpec
from oracles.peft import Peft


@measures("lora.gaussian_a")
def _gaussian_a() -> float:
    made = [
        w.adapt(base(64, 512), AdapterSpec("lora", 64)) for w in (Peft(), author_of("lora", "author").make())
    ]
    entries = [value(adapted, "A").flatten() for adapted in made]
    assert all(float(a.abs().max()) <= 512**-0.5 for a in entries)
    kurtosis = [float((a**4).mean() / (a**2).mean() ** 2) for a in entries]
    return max(kurtosis, key=lambda k: abs(k - 1.8))


@measures("lora.adapter_dtype")
def _adapter_dtype() -> float:
    spec = AdapterSpec("lora", 4)
    theirs = author_of("lora", "author").make().adapt(base(dtype=torch.bfloat16), spec)
    assert value(theirs, "A").dtype == torch.bfloat16
    A = value(Peft().adapt(base(dtype=torch.bfloat16), spec), "A")
    assert A.dtype == torch.float32
    return float((A.bfloat16().float() == A).double().mean())
