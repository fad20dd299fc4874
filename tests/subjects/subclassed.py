"""Style: a subclass of ``nn.Linear`` takes the base's weight over and merges itself in eval, as loralib does.

Adapters live in the weight's dtype, as in the authors' own code; so do all computations (under autocast DoRA answers in
that dtype). What is written in evaluation mode, where the effective weight is cached, is seen after train() and eval().
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from oracles.implementation import Adapted, AdapterSpec, Slot, Unsupported
from tests.subjects.files import InStateDict


class AdaptedLinear(nn.Linear):
    """A linear layer that caches its effective weight in evaluation mode and forgets it in training mode."""

    def __init__(self, base: nn.Linear, spec: AdapterSpec) -> None:
        kind = {"dtype": base.weight.dtype, "device": base.weight.device}
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, **kind)
        self.load_state_dict(base.state_dict())
        self.requires_grad_(False)
        self.spec, self.cached = spec, None
        self.scaling = spec.alpha / spec.rank
        self.start()

    def parameter(self, *shape: int) -> nn.Parameter:
        return nn.Parameter(self.weight.new_zeros(shape))

    def start(self) -> None:
        self.lora_A = self.parameter(self.spec.rank, self.in_features)
        self.lora_B = self.parameter(self.out_features, self.spec.rank)
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def slots(self) -> dict[str, Slot]:
        return {"A": Slot(self.lora_A), "B": Slot(self.lora_B)}

    def train(self, mode: bool = True) -> nn.Linear:
        self.cached = None
        return super().train(mode)

    def folded(self) -> tuple[Tensor, Tensor | None]:
        raise NotImplementedError

    def unmerged(self, x: Tensor) -> Tensor:
        return fn.linear(x, *self.folded())

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.unmerged(x)
        if torch.is_grad_enabled():
            return fn.linear(x, *self.folded())
        if self.cached is None:
            self.cached = self.folded()
        return fn.linear(x, *self.cached)


class LoraLinear(AdaptedLinear):
    """LoRA."""

    def folded(self) -> tuple[Tensor, Tensor | None]:
        return self.weight + self.lora_B @ self.lora_A * self.scaling, self.bias

    def unmerged(self, x: Tensor) -> Tensor:
        update = fn.dropout(x, self.spec.dropout, self.training) @ self.lora_A.T @ self.lora_B.T
        return fn.linear(x, self.weight, self.bias) + update * self.scaling


class PissaLinear(LoraLinear):
    """PiSSA: this layer's weight is the residual."""

    def start(self) -> None:
        W = self.weight.to(torch.float32)
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        r = self.spec.rank
        S = S[:r] / self.scaling
        B, A = U[:, :r] @ torch.diag(S.sqrt()), torch.diag(S.sqrt()) @ Vh[:r]
        self.lora_A, self.lora_B = (nn.Parameter(t.to(self.weight.dtype)) for t in (A, B))
        self.weight.data = (W - self.scaling * B @ A).to(self.weight.dtype)

    def slots(self) -> dict[str, Slot]:
        return {**super().slots(), "W": Slot(self.weight)}


class DoraLinear(AdaptedLinear):
    """DoRA; the correction is computed from the base's output without its bias."""

    def start(self) -> None:
        super().start()
        self.lora_m = nn.Parameter(torch.linalg.norm(self.weight, dim=1))

    def slots(self) -> dict[str, Slot]:
        return {**super().slots(), "m": Slot(self.lora_m)}

    def direction(self) -> Tensor:
        return self.weight + self.scaling * self.lora_B @ self.lora_A

    def gain(self) -> Tensor:
        return self.lora_m / torch.linalg.norm(self.direction(), dim=1).detach()

    def folded(self) -> tuple[Tensor, Tensor | None]:
        return self.gain().view(-1, 1) * self.direction(), self.bias

    def unmerged(self, x: Tensor) -> Tensor:
        g = self.gain()
        d = fn.dropout(x, self.spec.dropout, self.training)
        y = fn.linear(x, self.weight) + (g - 1) * fn.linear(d, self.weight)
        y = y + g * self.scaling * (d @ self.lora_A.T @ self.lora_B.T)
        return y if self.bias is None else y + self.bias


class Ia3Linear(AdaptedLinear):
    """(IA)³."""

    def start(self) -> None:
        shape = (1, self.in_features) if self.spec.feedforward else (self.out_features, 1)
        self.ia3_l = nn.Parameter(self.weight.new_ones(shape))

    def slots(self) -> dict[str, Slot]:
        return {"l": Slot(self.ia3_l, lambda t: t.view(-1))}

    def folded(self) -> tuple[Tensor, Tensor | None]:
        if self.spec.feedforward or self.bias is None:
            return self.weight * self.ia3_l, self.bias
        return self.weight * self.ia3_l, self.bias * self.ia3_l.view(-1)


class HraLinear(AdaptedLinear):
    """HRA, the weight reflected from the right one vector after the other."""

    def start(self) -> None:
        if self.spec.rank % 2:
            raise Unsupported("an even number of reflections is needed")
        half = torch.empty(self.in_features, self.spec.rank // 2, dtype=self.weight.dtype)
        nn.init.kaiming_uniform_(half, a=math.sqrt(5))
        self.hra_u = nn.Parameter(torch.repeat_interleave(half, 2, dim=1))

    def slots(self) -> dict[str, Slot]:
        return {"U": Slot(self.hra_u)}

    def folded(self) -> tuple[Tensor, Tensor | None]:
        W = self.weight
        for i in range(self.spec.rank):
            u = self.hra_u[:, i : i + 1]
            W = W - (W @ u) @ (2 / u.square().sum() * u.T)
        return W, self.bias


class DeloraLinear(AdaptedLinear):
    """DeLoRA, ‖W‖ folded into A."""

    def start(self) -> None:
        super().start()
        self.delora_lambda = nn.Parameter(torch.ones_like(self.lora_A[:1, 0]) * self.spec.lambda0)
        self.register_buffer("w_norm", torch.linalg.norm(self.weight, dim=0))

    def slots(self) -> dict[str, Slot]:
        return {**super().slots(), "lambda": Slot(self.delora_lambda), "w_norm": Slot(self.w_norm)}

    def factors(self) -> tuple[Tensor, Tensor]:
        a = self.lora_A.norm(dim=1, keepdim=True).clamp(min=1e-4)
        b = self.lora_B.norm(dim=0, keepdim=True).clamp(min=1e-4)
        return self.lora_A / a * self.w_norm, self.lora_B / b * (self.delora_lambda / self.spec.rank)

    def folded(self) -> tuple[Tensor, Tensor | None]:
        A, B = self.factors()
        return self.weight + B @ A, self.bias

    def unmerged(self, x: Tensor) -> Tensor:
        A, B = self.factors()
        d = fn.dropout(x, self.spec.dropout, self.training)
        return fn.linear(x, self.weight, self.bias) + fn.linear(fn.linear(d, A), B)


LINEARS: dict[str, type[AdaptedLinear]] = {
    "lora": LoraLinear,
    "pissa": PissaLinear,
    "dora": DoraLinear,
    "ia3": Ia3Linear,
    "hra": HraLinear,
    "delora": DeloraLinear,
}


class Library(InStateDict):
    """Layers that replace the base layer; the base itself is kept as it was for detaching."""

    name = "subclassed"
    version = "4"
    variants = frozenset(LINEARS)

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        if spec.rank <= 0:
            raise ValueError(f"rank {spec.rank} is no rank")
        if spec.gram_schmidt:
            raise Unsupported("Gram-Schmidt is not offered")
        if spec.variant == "pissa" and spec.rank > min(base.weight.shape):
            raise ValueError("rank is too large for this layer")
        layer = LINEARS[spec.variant](base, spec)
        layer.taken_from = (base,)
        layer.train(base.training)
        return Adapted(layer, layer.slots())

    def merge(self, adapted: Adapted) -> nn.Linear:
        W, b = adapted.module.folded()
        layer = nn.Linear(W.shape[1], W.shape[0], bias=b is not None, dtype=W.dtype)
        layer.weight.data = W.detach().clone()
        if b is not None:
            layer.bias.data = b.detach().clone()
        return layer

    def detach(self, adapted: Adapted) -> nn.Linear:
        return adapted.module.taken_from[0]

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        return Path(__file__), "AdaptedLinear"
