"""The model that is sharded, its adapters, and what is asked of it, in as many processes as there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.cases.tiny_models import fill
from oracles.implementation import AdapterSpec, Implementation
from oracles.seeding import seed_torch

BATCH, LENGTH, VOCABULARY, STEPS = 4, 5, 32, 10
LEARNING_RATE = 1e-2
# Heads of keys too: a rank holds whole heads.
LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
}
COLUMNS, ROWS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), ("o_proj", "down_proj")
TARGETS = ("q_proj", "o_proj", "up_proj", "down_proj")
# How a job is spread: torch's fully_shard, or parallelize_module before or after the adapters are attached.
FSDP2, BEFORE, AFTER = "FSDP2", "TP before", "TP after"


@dataclass(frozen=True)
class Job:
    """One model to shard: whose adapters, with what, and how it is spread over the ranks."""

    subject: Implementation
    spec: AdapterSpec
    way: str

    @property
    def name(self) -> str:
        """For tables and messages."""
        return f"{self.subject.name} {self.spec.variant}, {self.way}"


def base() -> nn.Module:
    """A fresh two-block Llama in float64, the same at every call."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**LLAMA)).double()
    fill(model, torch.Generator().manual_seed(1))
    return model


def batch() -> tuple[Tensor, Tensor]:
    """Token ids and the tokens asked for, (4, 5) each."""
    generator = torch.Generator().manual_seed(2)
    ids, labels = torch.randint(3, VOCABULARY, (2, BATCH, LENGTH), generator=generator)
    return ids, labels


def adapt(job: Job, model: nn.Module) -> dict[str, nn.Parameter]:
    """Adapt the targets, from the same seed in every process; the trained tensors by their names in the model."""
    seed_torch(0)
    adapted = job.subject.adapt_model(model, job.spec, list(TARGETS))
    held = {id(slot.tensor) for a in adapted.values() for slot in a.slots.values()}
    return {n: p for n, p in model.named_parameters() if p.requires_grad and id(p) in held}


def move(parameters: Mapping[str, nn.Parameter]) -> None:
    """Off the start, where B is zero and much looks right; the same values in every process."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 4)


def loss_of(model: nn.Module, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The logits, and their mean cross-entropy."""
    logits = model(input_ids=ids).logits
    return logits, nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())


Gather = Callable[[Tensor], Tensor]


def answers(
    model: nn.Module, names: Mapping[str, Any], part: slice, whole: Gather, spread: Gather
) -> dict[str, Tensor]:
    """Start, output, gradients and ten steps of SGD, as whole tensors.

    ``part``: the rows of the batch that this process computes; ``whole`` turns a sharded tensor into a full one,
    ``spread`` puts the rows of all processes together.
    """
    ids, labels = batch()
    found = {f"start {n}": whole(p) for n, p in _trained(model, names).items()}
    logits, loss = loss_of(model, ids[part], labels[part])
    loss.backward()
    found["output"] = spread(logits.detach())
    for n, p in _trained(model, names).items():
        found[f"gradient {n}"] = torch.zeros(()) if p.grad is None else whole(p.grad)
    optimiser = torch.optim.SGD(list(_trained(model, names).values()), lr=LEARNING_RATE)
    for step in range(STEPS):
        if step:
            optimiser.zero_grad()
            loss_of(model, ids[part], labels[part])[1].backward()
        optimiser.step()
    return found | {f"steps {n}": whole(p) for n, p in _trained(model, names).items()}


def _trained(model: nn.Module, names: Mapping[str, Any]) -> dict[str, nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if n in names}


def saved(job: Job, model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """The tensors of the file in PEFT's format that the library writes of the model, as it is."""
    from safetensors.torch import load_file

    job.subject.save_peft(model, folder)
    (file,) = folder.glob("*.safetensors")
    return load_file(file)
