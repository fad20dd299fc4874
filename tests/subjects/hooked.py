"""Style: the layer stays what it is; forward hooks change its input or add to its output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from oracles.implementation import Adapted, AdapterSpec, Slot, Unsupported
from tests.subjects.files import InTorchFile


class Hooked(nn.Module):
    """An adapter that hangs on a layer; its parameters are fp32, or fp64 for an fp64 layer."""

    def __init__(self, layer: nn.Linear, spec: AdapterSpec) -> None:
        super().__init__()
        assert spec.rank > 0, "rank must be positive"
        self.spec = spec
        self.scale, self.rank, self.p = spec.alpha / spec.rank, spec.rank, spec.dropout
        self.dtype = torch.float64 if layer.weight.dtype == torch.float64 else torch.float32
        self.build(layer.weight.data.to(self.dtype), spec)

    def build(self, W: Tensor, spec: AdapterSpec) -> None:
        self.A = nn.Parameter(
            nn.init.kaiming_uniform_(torch.empty(spec.rank, W.shape[1], dtype=W.dtype), a=5**0.5)
        )
        self.B = nn.Parameter(torch.zeros(W.shape[0], spec.rank, dtype=W.dtype))

    def before(self, layer: nn.Linear, x: Tensor) -> Tensor:
        """The layer's input."""
        return x

    def after(self, layer: nn.Linear, x: Tensor, y: Tensor) -> Tensor:
        """The layer's output."""
        return y

    def dropped(self, x: Tensor) -> Tensor:
        return fn.dropout(x.to(self.dtype), self.p, self.training)

    def slots(self, layer: nn.Linear) -> dict[str, Slot]:
        return {name: Slot(tensor) for name, tensor in [*self.named_parameters(), *self.named_buffers()]}


class Lora(Hooked):
    def after(self, layer: nn.Linear, x: Tensor, y: Tensor) -> Tensor:
        update = torch.einsum("...i,ri,or->...o", self.dropped(x), self.A, self.B)
        return (y + self.scale * update).to(y.dtype)


class Pissa(Lora):
    """The layer's own weight becomes the residual."""

    def build(self, W: Tensor, spec: AdapterSpec) -> None:
        if spec.rank > min(W.shape):
            raise ValueError("rank is above min(in, out)")
        U, S, V = torch.svd(W)
        keep = S[: spec.rank].div(self.scale).sqrt().diag()
        self.A = nn.Parameter(keep @ V[:, : spec.rank].T)
        self.B = nn.Parameter(U[:, : spec.rank] @ keep)

    def slots(self, layer: nn.Linear) -> dict[str, Slot]:
        return {**super().slots(layer), "W": Slot(layer.weight)}


class Dora(Lora):
    def build(self, W: Tensor, spec: AdapterSpec) -> None:
        super().build(W, spec)
        self.m = nn.Parameter(W.norm(p=2, dim=1))

    def gain(self, W: Tensor) -> Tensor:
        with torch.no_grad():
            length = (W + self.scale * self.B @ self.A).norm(p=2, dim=1)
        return self.m / length

    def after(self, layer: nn.Linear, x: Tensor, y: Tensor) -> Tensor:
        W = layer.weight.to(self.dtype)
        g, x = self.gain(W), self.dropped(x)
        low = g * (x @ self.A.T @ self.B.T * self.scale)
        return (y + (g - 1) * (x @ W.T) + low).to(y.dtype)


class Ia3(Hooked):
    def build(self, W: Tensor, spec: AdapterSpec) -> None:
        self.feedforward = spec.feedforward
        self.l = nn.Parameter(torch.ones(W.shape[int(spec.feedforward)], dtype=W.dtype))

    def before(self, layer: nn.Linear, x: Tensor) -> Tensor:
        return (x * self.l).to(x.dtype) if self.feedforward else x

    def after(self, layer: nn.Linear, x: Tensor, y: Tensor) -> Tensor:
        return y if self.feedforward else (y * self.l).to(y.dtype)


class Hra(Hooked):
    """The input is reflected, by u_r first: W H₁ … H_r x."""

    def build(self, W: Tensor, spec: AdapterSpec) -> None:
        self.gram_schmidt = spec.gram_schmidt
        bound = max(spec.rank // 2, 1) ** -0.5
        if spec.gram_schmidt:  # pairs would leave nothing that is orthogonal to one another
            self.U = nn.Parameter(torch.empty(W.shape[1], spec.rank, dtype=W.dtype).uniform_(-bound, bound))
            return
        if spec.rank % 2:
            raise Unsupported("HRA takes even ranks only")
        half = torch.empty(W.shape[1], spec.rank // 2, dtype=W.dtype).uniform_(-bound, bound)
        self.U = nn.Parameter(half.repeat_interleave(2, 1).contiguous())

    def before(self, layer: nn.Linear, x: Tensor) -> Tensor:
        z = x.to(self.dtype)
        if self.gram_schmidt:
            return self.projected(z).to(x.dtype)
        for u in fn.normalize(self.U, dim=0, eps=1e-12).unbind(1)[::-1]:
            z = z - 2 * (z @ u).unsqueeze(-1) * u
        return z.to(x.dtype)

    def projected(self, z: Tensor) -> Tensor:
        q: list[Tensor] = []
        for u in self.U.unbind(1):
            rest = u - sum((q_ * (q_ @ u) for q_ in q), torch.zeros_like(u))
            q.append(rest / rest.norm())
        Q = torch.stack(q, 1)
        return z - 2 * z @ Q @ Q.T


class Delora(Hooked):
    """Ξ is applied between the factors, in r dimensions."""

    def build(self, W: Tensor, spec: AdapterSpec) -> None:
        super().build(W, spec)
        self.register_parameter("lambda", nn.Parameter(torch.full((1,), float(spec.lambda0), dtype=W.dtype)))
        self.register_buffer("w_norm", W.norm(dim=0))

    def after(self, layer: nn.Linear, x: Tensor, y: Tensor) -> Tensor:
        h = fn.linear(self.dropped(x) * self.w_norm, self.A)
        a = torch.linalg.vector_norm(self.A, dim=1).clamp(min=1e-4)
        b = torch.linalg.vector_norm(self.B, dim=0).clamp(min=1e-4)
        h = h * (getattr(self, "lambda") / self.rank) / a / b
        return (y + h @ self.B.T).to(y.dtype)


def enter(layer: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Forward pre-hook; the adapter is found on the layer, so that a copy of the layer has its own."""
    return (layer.adapter.before(layer, args[0]), *args[1:])


def leave(layer: Any, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
    """Forward hook."""
    return layer.adapter.after(layer, args[0], y)


ADAPTERS: dict[str, type[Hooked]] = {
    "lora": Lora, "pissa": Pissa, "dora": Dora, "ia3": Ia3, "hra": Hra, "delora": Delora,
}  # fmt: skip


class Library(InTorchFile):
    """Hooks on the layer; taking them off is detaching. Saves with ``torch.save``, loads weights only."""

    name = "hooked"
    version = "0.9"
    variants = frozenset(ADAPTERS)

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        base.requires_grad_(False)
        before = base.weight.detach().clone()
        adapter = ADAPTERS[spec.variant](base, spec)
        slots = adapter.slots(base)
        if "W" in slots:
            with torch.no_grad():
                base.weight -= (adapter.scale * adapter.B @ adapter.A).to(base.weight.dtype)
        base.adapter = adapter.train(base.training)

        adapter.handles = [base.register_forward_pre_hook(enter), base.register_forward_hook(leave)]
        adapter.weight_before = [before]  # in a list, out of the state dict
        return Adapted(base, slots)

    def detach(self, adapted: Adapted) -> nn.Linear:
        layer = adapted.module
        for handle in layer.adapter.handles:
            handle.remove()
        with torch.no_grad():
            layer.weight.copy_(layer.adapter.weight_before[0])
        del layer.adapter
        return layer

    def merge(self, adapted: Adapted) -> nn.Linear:
        """W' and b' are read off by asking the hooked layer, in the adapter's dtype."""
        layer = adapted.module
        dtype = layer.weight.dtype
        layer.to(layer.adapter.dtype)
        training = layer.training
        layer.eval()  # asked in training mode it would drop some of the answers
        with torch.no_grad():
            zero = layer(torch.zeros(1, layer.in_features, dtype=layer.weight.dtype))[0]
            eye = layer(torch.eye(layer.in_features, dtype=layer.weight.dtype))
        layer.train(training)
        merged = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, dtype=dtype)
        with torch.no_grad():
            merged.weight.copy_((eye - zero).T)
            if layer.bias is not None:
                merged.bias.copy_(zero)
        return merged
