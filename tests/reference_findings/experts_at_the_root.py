"""``layers_to_transform`` takes an expert's number for the block's where the list of blocks is at the model's root."""

import peft
from torch import nn


class Expert(nn.Module):
    """One layer."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Linear(4, 3)


class Block(nn.Module):
    """Two experts."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([Expert(), Expert()])


class Model(nn.Module):
    """Three blocks, under ``inner`` or not."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block(), Block()])


def adapted(model: nn.Module) -> list[str]:
    """Which layers get an adapter for block 1."""
    tuned = peft.get_peft_model(model, peft.LoraConfig(target_modules=["w1"], layers_to_transform=[1]))
    return [name for name, m in tuned.base_model.model.named_modules() if hasattr(m, "lora_A")]


below = nn.Module()
below.inner = Model()
root = adapted(Model())
print(f"below a name: {adapted(below)}; at the root: {root}")
assert root == [f"layers.{i}.experts.1.w1" for i in range(3)]
