"""The previous round's library, rebuilt with the defects that its review was about, and as a subject.

One file, as such libraries are: a config, a hook per layer, the six methods as pairs of functions.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import linear

from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot


@dataclass(frozen=True)
class Config:
    """What an adapter is made from."""

    variant: str
    rank: int
    alpha: float
    dropout: float = 0.0


class Adapter(nn.Module):
    """Parameters of one method beside a frozen layer; ``dropout`` is kept in the config."""

    def __init__(self, layer: nn.Linear, config: Config) -> None:
        super().__init__()
        if config.rank < 1:
            raise ValueError(f"rank is {config.rank}, expected at least 1")
        self.layer, self.config = layer.requires_grad_(False), config
        self.before = layer.weight.detach().clone()
        self.dtype = torch.promote_types(layer.weight.dtype, torch.float32)
        self.start(layer.weight.detach().to(self.dtype))

    def start(self, W: Tensor) -> None:
        """Make the parameters."""
        raise NotImplementedError

    def start_low_rank(self, W: Tensor) -> None:
        """A kaiming-uniform, B zero."""
        out, in_ = W.shape
        bound = 1 / math.sqrt(in_)
        self.A = nn.Parameter(torch.empty(self.config.rank, in_, dtype=W.dtype).uniform_(-bound, bound))
        self.B = nn.Parameter(torch.zeros(out, self.config.rank, dtype=W.dtype))

    @property
    def scale(self) -> float:
        return self.config.alpha / self.config.rank

    def weight(self, W: Tensor) -> Tensor:
        """W' (out, in)."""
        raise NotImplementedError

    def bias(self, b: Tensor) -> Tensor:
        """b'."""
        return b

    def effective(self) -> tuple[Tensor, Tensor | None]:
        b = self.layer.bias
        return self.weight(self.layer.weight.to(self.dtype)), None if b is None else self.bias(
            b.to(self.dtype)
        )

    def forward(self, x: Tensor) -> Tensor:
        return linear(x.to(self.dtype), *self.effective()).to(x.dtype)

    def slots(self) -> dict[str, Slot]:
        return {name.rstrip("_"): Slot(p) for name, p in self.named_parameters(recurse=False)}


class LoRA(Adapter):
    """W + (α/r) B A."""

    def start(self, W: Tensor) -> None:
        self.start_low_rank(W)

    def weight(self, W: Tensor) -> Tensor:
        return W + self.scale * self.B @ self.A


class PiSSA(LoRA):
    """The r largest singular triples as A = √S Vᵀ and B = U √S; the layer keeps W − (α/r) B A."""

    def start(self, W: Tensor) -> None:
        r = self.config.rank
        if r > min(W.shape):
            raise ValueError(f"rank is {r}, expected at most {min(W.shape)}")
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        self.A = nn.Parameter((S[:r].sqrt()[:, None] * Vh[:r]).contiguous())
        self.B = nn.Parameter((U[:, :r] * S[:r].sqrt()).contiguous())
        self.layer.weight.data = (W - self.scale * self.B.data @ self.A.data).to(self.layer.weight.dtype)

    def slots(self) -> dict[str, Slot]:
        return {**super().slots(), "W": Slot(self.layer.weight)}


class DoRA(LoRA):
    """diag(m) V / ‖V‖ with V = W + (α/r) B A.

    The gradient flows through the norm ‖V‖: it is not detached, unlike in §4.3 of the paper.
    """

    def start(self, W: Tensor) -> None:
        super().start(W)
        self.m = nn.Parameter(W.norm(dim=1))

    def weight(self, W: Tensor) -> Tensor:
        V = super().weight(W)
        return (self.m / V.norm(dim=1))[:, None] * V


class IA3(Adapter):
    """l ⊙ (W x + b)."""

    def start(self, W: Tensor) -> None:
        self.l = nn.Parameter(torch.ones(W.shape[0], dtype=W.dtype))

    def weight(self, W: Tensor) -> Tensor:
        return W * self.l[:, None]

    def bias(self, b: Tensor) -> Tensor:
        return b * self.l


class HRA(Adapter):
    """W H₁ … H_r, blended in by a gate that starts at zero."""

    def start(self, W: Tensor) -> None:
        half = torch.empty(W.shape[1], (self.config.rank + 1) // 2, dtype=W.dtype)
        nn.init.kaiming_uniform_(half, a=math.sqrt(5))
        self.U = nn.Parameter(half.repeat_interleave(2, dim=1)[:, : self.config.rank].contiguous())
        self.gate = nn.Parameter(torch.zeros(1, dtype=W.dtype))

    def reflected(self, W: Tensor) -> Tensor:
        for u in self.U.unbind(1):
            W = W - 2 * torch.outer(W @ u, u) / u.dot(u)
        return W

    def weight(self, W: Tensor) -> Tensor:
        return W + self.gate * (self.reflected(W) - W)


class GramSchmidtHRA(HRA):
    """W (I − 2QQᵀ), Q from U by Gram-Schmidt, blended in by the same gate."""

    def reflected(self, W: Tensor) -> Tensor:
        columns: list[Tensor] = []
        for u in self.U.unbind(1):
            for q in columns:
                u = u - (u @ q) * q
            columns.append(u / u.norm())
        Q = torch.stack(columns, 1)
        return W - 2 * W @ Q @ Q.T


class DeLoRA(Adapter):
    """W + (λ/r) ‖W‖ B Ξ A with one ‖W‖ for the whole weight; λ starts at zero and A, B at random."""

    def start(self, W: Tensor) -> None:
        self.start_low_rank(W)
        nn.init.kaiming_uniform_(self.B, a=math.sqrt(5))
        self.lambda_ = nn.Parameter(torch.zeros(1, dtype=W.dtype))
        self.w_norm = nn.Parameter(W.norm(), requires_grad=False)

    def weight(self, W: Tensor) -> Tensor:
        a, b = self.A.norm(dim=1).clamp(min=1e-4), self.B.norm(dim=0).clamp(min=1e-4)
        return W + self.w_norm * (self.B * (self.lambda_ / self.config.rank / (a * b))) @ self.A


ADAPTERS: dict[str, type[Adapter]] = {
    "lora": LoRA,
    "pissa": PiSSA,
    "dora": DoRA,
    "ia3": IA3,
    "hra": HRA,
    "hra gram_schmidt": GramSchmidtHRA,
    "delora": DeLoRA,
}


def attach(layer: nn.Linear, config: Config) -> Adapter:
    """The layer with a fresh adapter."""
    return ADAPTERS[config.variant](layer, config)


def save(adapter: Adapter, path: Path) -> None:
    """The trainable parameters and buffers that belong to the adapter, in one safetensors file."""
    tensors = {name: p.detach().clone() for name, p in adapter.named_parameters(recurse=False)}
    save_file(tensors, path, metadata={key: str(value) for key, value in asdict(adapter.config).items()})


def load(layer: nn.Linear, config: Config, path: Path) -> Adapter:
    """The layer with the adapter in ``path``. Raises ValueError for a file that does not fit."""
    with safe_open(path, framework="pt") as handle:
        said = (handle.metadata() or {}).get("variant")
    tensors = load_file(path)
    if said != config.variant:
        raise ValueError(f"{path} holds {said}, expected {config.variant}")
    tried = attach(nn.Linear(layer.in_features, layer.out_features), config)
    wanted = {name: p.shape for name, p in tried.named_parameters(recurse=False)}
    if {name: t.shape for name, t in tensors.items()} != wanted:
        raise ValueError(f"{path} holds other tensors than {wanted}")
    adapter = attach(layer, config)
    with torch.no_grad():
        for name, p in adapter.named_parameters(recurse=False):
            p.copy_(tensors[name])
    return adapter


class Round1(Implementation):
    """The library behind the audit's interface."""

    name = "round1"
    version = "1"
    variants = frozenset({"lora", "pissa", "dora", "ia3", "hra", "delora"})

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        return self._shown(attach(base, self._config(spec)))

    def _config(self, spec: AdapterSpec) -> Config:
        mode = " gram_schmidt" if spec.gram_schmidt else ""
        return Config(spec.variant + mode, spec.rank, spec.alpha, spec.dropout)

    def _shown(self, adapter: Adapter) -> Adapted:
        return Adapted(adapter, adapter.slots())

    def save(self, adapted: Adapted, path: Path) -> None:
        save(adapted.module, path)

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        return self._shown(load(base, self._config(spec), path))

    def merge(self, adapted: Adapted) -> nn.Linear:
        adapter: Adapter = adapted.module
        weight, bias = adapter.effective()
        dtype = adapter.layer.weight.dtype
        layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None)
        layer.weight = nn.Parameter(weight.detach().to(dtype))
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach().to(dtype))
        return layer

    def detach(self, adapted: Adapted) -> nn.Linear:
        adapter: Adapter = adapted.module
        adapter.layer.weight.data = adapter.before.clone()
        return adapter.layer

    def source(self, variant: str, aspect: str) -> tuple[Path, str] | None:
        """The class of the variant, or the function that saves; dropout is implemented nowhere."""
        if aspect == "save_load":
            return Path(__file__), "save"
        if aspect in ("targets", "dropout"):
            return None
        method = "start" if aspect in ("shapes", "init") else "weight"
        return Path(__file__), f"{ADAPTERS[variant].__name__}.{method}"
