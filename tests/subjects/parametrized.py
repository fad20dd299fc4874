"""Style: ``torch.nn.utils.parametrize`` on the weight (and, where the method scales it, on the bias)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot, Unsupported


class Delta(nn.Module):
    """W' = W + (α/r) B A."""

    def __init__(self, W: Tensor, spec: AdapterSpec) -> None:
        super().__init__()
        out, in_ = W.shape
        self.scale = spec.alpha / spec.rank
        self.a = nn.Parameter(torch.empty(spec.rank, in_, dtype=W.dtype))
        self.b = nn.Parameter(torch.zeros(out, spec.rank, dtype=W.dtype))
        nn.init.uniform_(self.a, -(in_**-0.5), in_**-0.5)

    def forward(self, W: Tensor) -> Tensor:
        return W + self.scale * self.b @ self.a

    def slots(self) -> dict[str, Slot]:
        return {"A": Slot(self.a), "B": Slot(self.b)}


class Principal(Delta):
    """PiSSA: the original weight that parametrize keeps is overwritten by the residual."""

    def __init__(self, W: Tensor, spec: AdapterSpec) -> None:
        super().__init__(W, spec)
        # SVD of the transpose: other vectors' signs than the SVD of W, the same factors' product.
        V, S, Ut = torch.linalg.svd(W.T.double(), full_matrices=False)
        root = (S[: spec.rank] / self.scale) ** 0.5
        a, b = (V[:, : spec.rank] * root).T, Ut[: spec.rank].T * root
        self.residual = W.double() - self.scale * b @ a
        with torch.no_grad():
            self.a.copy_(a)
            self.b.copy_(b)


class Decomposed(Delta):
    """DoRA."""

    def __init__(self, W: Tensor, spec: AdapterSpec) -> None:
        super().__init__(W, spec)
        self.magnitude = nn.Parameter(torch.linalg.norm(W, dim=1, keepdim=True))

    def forward(self, W: Tensor) -> Tensor:
        V = super().forward(W)
        return V * (self.magnitude * V.detach().pow(2).sum(1, keepdim=True).rsqrt())

    def slots(self) -> dict[str, Slot]:
        return {**super().slots(), "m": Slot(self.magnitude, lambda t: t.squeeze(1))}


class Gate(nn.Module):
    """(IA)³: rows, or columns, times l; one gate serves weight and bias."""

    def __init__(self, l: nn.Parameter, dim: int) -> None:
        super().__init__()
        self.l, self.dim = l, dim

    def forward(self, W: Tensor) -> Tensor:
        return W * (self.l.unsqueeze(-1) if self.dim == 0 and W.dim() == 2 else self.l)


class Householder(nn.Module):
    """HRA: a product of r reflections from the right, by the compact WY form I − U T Uᵀ."""

    def __init__(self, W: Tensor, spec: AdapterSpec) -> None:
        super().__init__()
        half = torch.empty(W.shape[1], spec.rank // 2, dtype=W.dtype)
        nn.init.kaiming_uniform_(half, a=5**0.5)
        self.u = nn.Parameter(half.repeat_interleave(2, 1))

    def forward(self, W: Tensor) -> Tensor:
        u = self.u.to(
            torch.promote_types(self.u.dtype, torch.float32)
        )  # no triangular solve in half precision
        unit = u / u.norm(dim=0)
        # H₁ … H_r = I − U T Uᵀ with T⁻¹ = ½ diag(UᵀU) + striu(UᵀU): unit columns make the diagonal one half.
        gram = (unit[:, :, None] * unit[:, None, :]).sum(0)  # no matrix product: autocast would round it
        T_inv = torch.triu(gram, 1) + 0.5 * torch.eye(gram.shape[0], dtype=gram.dtype)
        wide = W.to(unit.dtype)
        with torch.autocast(W.device.type, enabled=False):
            return (wide - (wide @ unit) @ torch.linalg.solve_triangular(T_inv, unit.T, upper=True)).to(
                W.dtype
            )


class Bounded(nn.Module):
    """DeLoRA."""

    def __init__(self, W: Tensor, spec: AdapterSpec) -> None:
        super().__init__()
        out, in_ = W.shape
        self.r = spec.rank
        self.a = nn.Parameter((torch.rand(spec.rank, in_, dtype=W.dtype) - 0.5) * 2 * in_**-0.5)
        self.b = nn.Parameter(torch.zeros(out, spec.rank, dtype=W.dtype))
        self.strength = nn.Parameter(torch.tensor([spec.lambda0], dtype=W.dtype))
        self.register_buffer("columns", W.norm(dim=0, keepdim=True))

    def forward(self, W: Tensor) -> Tensor:
        a = self.a / self.a.norm(dim=1, keepdim=True).clamp_min(1e-4)
        b = self.b / self.b.norm(dim=0, keepdim=True).clamp_min(1e-4)
        return W + (self.strength / self.r * b) @ (a * self.columns)

    def slots(self) -> dict[str, Slot]:
        return {
            "A": Slot(self.a),
            "B": Slot(self.b),
            "lambda": Slot(self.strength),
            "w_norm": Slot(self.columns, lambda t: t[0]),
        }


class Library(Implementation):
    """Parametrised weights: the layer stays an ``nn.Linear``. No dropout, no files."""

    name = "parametrized"
    version = "2.1"
    variants = frozenset({"lora", "pissa", "dora", "ia3", "hra", "delora"})

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        if spec.rank < 1:
            raise ValueError("rank < 1")
        if spec.dropout > 0 or spec.gram_schmidt:
            raise Unsupported("dropout and gram_schmidt are not offered")
        if spec.variant == "hra" and spec.rank % 2:
            raise Unsupported("even ranks only")
        if spec.variant == "pissa" and spec.rank > min(base.weight.shape):
            raise Unsupported("rank above min(in, out)")
        base.weight.requires_grad_(False)
        if base.bias is not None:
            base.bias.requires_grad_(False)
        return Adapted(base, getattr(self, spec.variant)(base, spec))

    def _on_weight(self, base: nn.Linear, module: nn.Module) -> None:
        parametrize.register_parametrization(base, "weight", module, unsafe=True)

    def lora(self, base: nn.Linear, spec: AdapterSpec) -> dict[str, Slot]:
        delta = Delta(base.weight.detach(), spec)
        self._on_weight(base, delta)
        return delta.slots()

    def pissa(self, base: nn.Linear, spec: AdapterSpec) -> dict[str, Slot]:
        delta = Principal(base.weight.detach(), spec)
        self._on_weight(base, delta)
        original = base.parametrizations.weight.original
        delta.before = original.detach().clone()
        with torch.no_grad():
            original.copy_(delta.residual)
        return {**delta.slots(), "W": Slot(original)}

    def dora(self, base: nn.Linear, spec: AdapterSpec) -> dict[str, Slot]:
        delta = Decomposed(base.weight.detach(), spec)
        self._on_weight(base, delta)
        return delta.slots()

    def ia3(self, base: nn.Linear, spec: AdapterSpec) -> dict[str, Slot]:
        size = base.in_features if spec.feedforward else base.out_features
        l = nn.Parameter(torch.ones(size, dtype=base.weight.dtype))
        self._on_weight(base, Gate(l, int(spec.feedforward)))
        if base.bias is not None and not spec.feedforward:
            parametrize.register_parametrization(base, "bias", Gate(l, 0), unsafe=True)
        return {"l": Slot(l)}

    def hra(self, base: nn.Linear, spec: AdapterSpec) -> dict[str, Slot]:
        chain = Householder(base.weight.detach(), spec)
        self._on_weight(base, chain)
        return {"U": Slot(chain.u)}

    def delora(self, base: nn.Linear, spec: AdapterSpec) -> dict[str, Slot]:
        delta = Bounded(base.weight.detach(), spec)
        self._on_weight(base, delta)
        return delta.slots()

    def merge(self, adapted: Adapted) -> nn.Linear:
        """Leaves W' as the plain weight; a PiSSA base too."""
        layer = adapted.module
        for name in list(layer.parametrizations):
            parametrize.remove_parametrizations(layer, name, leave_parametrized=True)
        return layer

    def detach(self, adapted: Adapted) -> nn.Linear:
        layer = adapted.module
        before = getattr(layer.parametrizations.weight[0], "before", None)
        for name in list(layer.parametrizations):
            parametrize.remove_parametrizations(layer, name, leave_parametrized=False)
        if before is not None:
            with torch.no_grad():
                layer.weight.copy_(before)
        return layer
