"""How much the references of (IA)³ disagree: one measure per catalogued entry."""

from __future__ import annotations

import json
import re

import torch

from harness.cases.tiny_models import ModelCase
from harness.measures.measuring import apart, author_of, base, demand_live, measures, write
from oracles.authors.base import plain
from oracles.authors.ia3 import Ia3Author
from oracles.implementation import AdapterSpec, Implementation
from oracles.mistakes import mistaken
from oracles.peft import Peft
from refs import catalog as catalogue
from refs.locate import locate


@measures("ia3.general_path")
def _general_path() -> float:
    layer, spec, x = base(bias=True), AdapterSpec("ia3"), torch.randn(1, 8).double()
    gate = torch.rand(6).double() + 1.5
    general: Implementation = mistaken("ia3.bias_not_gated")
    if author_of("ia3", "author").kind == "live":
        general = Ia3Author(general=True)
    both = [who.adapt(plain(layer.weight, layer.bias), spec) for who in (Peft(), general)]
    for adapted in both:
        write(adapted, {"l": gate})
    ours, theirs = (adapted.module(x).detach() for adapted in both)
    return float((ours - theirs).norm() / ((gate - 1) * layer.bias.detach()).norm())


@measures("ia3.frozen_gate")
def _frozen_gate() -> float:
    demand_live("ia3")
    layer, x = base(), torch.randn(3, 8).double()
    adapted = Ia3Author().adapt(layer, AdapterSpec("ia3"))
    write(adapted, {"l": torch.full((6,), 2.0)})
    assert apart(adapted.module(x), layer(x)) > 0.9
    adapted.slots["l"].tensor.requires_grad_(False)
    return float((adapted.module(x) - layer(x)).detach().norm())


@measures("ia3.feedforward_targets")
def _feedforward_targets() -> float:
    demand_live("ia3")
    config = json.loads(
        locate(catalogue.load().reference("orig_ia3_config.json")).read_text(encoding="utf-8")
    )
    assert re.fullmatch(config["lora_layers"], "wi_1")
    return float(sum(bool(re.fullmatch(config["lora_layers"], name)) for name in ("wi", "wo")))


def _gated(architecture: str, ending: str) -> float:
    """How many layers of that name PEFT's (IA)³ adapts by default, in each of the model's two blocks."""
    found = Peft().adapt_model(ModelCase(AdapterSpec("ia3"), architecture).base(), AdapterSpec("ia3"))
    return sum(name.endswith(ending) for name in found) / 2


@measures("ia3.query_for_key")
def _query_for_key() -> float:
    assert _gated("qwen2", "k_proj") == 0
    assert _gated("llama", "q_proj") == 0
    return _gated("qwen2", "q_proj")


@measures("ia3.attention_output")
def _attention_output() -> float:
    return _gated("bert", "attention.output.dense")
