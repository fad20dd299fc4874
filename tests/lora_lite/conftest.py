"""Small layers and models for the tests of lora_lite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import lora_lite
from lora_lite import AdapterConfig, DeLoRAConfig, DoRAConfig, HRAConfig, IA3Config, LoRAConfig, PiSSAConfig

CONFIGS: dict[str, AdapterConfig] = {
    "lora": LoRAConfig(rank=4, alpha=6),
    "pissa": PiSSAConfig(rank=4, alpha=6),
    "dora": DoRAConfig(rank=4, alpha=6),
    "ia3": IA3Config(),
    "ia3-ff": IA3Config(feedforward=True),
    "hra": HRAConfig(rank=4),
    "hra-gs": HRAConfig(rank=3, gram_schmidt=True),
    "delora": DeLoRAConfig(rank=4, lambda0=3.0),
}


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Every test starts from the same random state and leaves the outside's alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(params=list(CONFIGS))
def config(request: pytest.FixtureRequest) -> AdapterConfig:
    """Each variant and mode."""
    return CONFIGS[request.param]


def linear(in_: int = 12, out: int = 9, dtype: torch.dtype = torch.float32, bias: bool = True) -> nn.Linear:
    return nn.Linear(in_, out, bias=bias).to(dtype)


def perturb(model: nn.Module, size: float = 0.3) -> None:
    """Move the adapters off their initial state, where wrong code looks right."""
    with torch.no_grad():
        for parameter in lora_lite.parameters(model):
            parameter.add_(torch.randn_like(parameter) * size)


class Block(nn.Module):
    """Two linear layers, one of them shared under a second name, an embedding tied to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 12)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"q_proj": nn.Linear(12, 12), "down_proj": nn.Linear(12, 12)}) for _ in range(3)
        )
        self.again = self.layers[0]["q_proj"]
        self.lm_head = nn.Linear(12, 7, bias=False)
        self.lm_head.weight = self.embed.weight

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        h = self.embed(ids)
        for layer in self.layers:
            h = h + layer["down_proj"](torch.relu(layer["q_proj"](h)))
        return self.lm_head(self.again(h))
