"""PiSSA: y = x (W_res + s B A)ᵀ + b with the principal singular part of W in B A."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import checkpoint
from ..config import PiSSAConfig
from ..variant import Variant, own, put_aside, register, weight_of
from .lora import LoRA

__all__ = ["PiSSA"]

INITIAL = {"A_initial": "A0", "B_initial": "B0"}  # name in the file -> buffer


@register
class PiSSA(LoRA):
    """Principal singular values and vectors adaptation (Meng et al., arXiv 2404.02948v4, Eqs. (2) to (5)).

    Equation
        y = x W_resᵀ + b + s · drop(x) Aᵀ Bᵀ,   s = α / r;   merged: W_res + s B A.
        With W = U S Vᵀ: A = √(S_r/s) V_rᵀ, B = U_r √(S_r/s), W_res = W - s B A at the start, then frozen.
    Shapes
        A (r, in), B (out, r), r at most min(in, out). The paper writes x W with W (in, out), so that its A
        of Eq. (2) is this Aᵀ and its B of Eq. (3) is this Bᵀ.
    Initialisation
        Exact SVD of the base's own W, whatever other adapters are on it, in fp32 (fp64 for an fp64 base).
        Dividing both factors by √s leaves s B A the best rank-r approximation of W for any α; step 0 is the
        base up to rounding.
    Several
        The layer has W_res of those that are active, W - s₁ B₁₀ A₁₀ - s₂ B₂₀ A₂₀, one subtracted after the other;
        with none active it has W itself.
    Saving
        The file holds A, B, their initial values, and the sha256 of the base weight. Loading rebuilds W_res
        from the base and the initial values instead of repeating the SVD. It is the same bit for bit on any
        machine: the rank-one terms are subtracted one by one in fp64, and a product or a difference of two
        IEEE numbers has one right answer, where a matrix product's order of summation is the library's.
        Another base is refused.

    References
        https://github.com/huggingface/peft/blob/v0.21.2/src/peft/tuners/lora/layer.py
        https://github.com/MuLabPKU/PiSSA/blob/87f4db6fc75a58b92c803cd9880c642bf011e69a/utils/init_pissa.py
        https://github.com/MuLabPKU/PiSSA/blob/87f4db6fc75a58b92c803cd9880c642bf011e69a/utils/init_qpissa.py

    Deviations
        - From PEFT: on a half-precision base A and B stay fp32 instead of being rounded through the base's
          dtype, so W_res + s B A is closer to W. An fp64 base is accepted (SVD in fp64) where PEFT raises.
          A rank above min(in, out) is refused where PEFT silently uses fewer. Only the exact SVD is offered.
        - From PEFT's file: PEFT saves A and B alone and repeats the SVD on whatever base it is given.
        - `detach` gives W back bit for bit; PEFT's `unload` leaves the residual.
    """

    Config = PiSSAConfig
    kinds = ("linear", "conv1d")
    needs_weight = True
    takes_quantised = False
    A0: Tensor
    B0: Tensor

    def build(self) -> None:
        """A, B, and their initial values outside the state dict. Raises ValueError for too high a rank."""
        most = min(self.in_features, self.out_features)
        if self.rank > most:
            shape = (self.out_features, self.in_features)
            raise ValueError(f"PiSSA of a {shape} weight needs a rank of at most {most}, got {self.rank}")
        super().build()
        self.register_buffer("A0", torch.empty_like(self.A), persistent=False)
        self.register_buffer("B0", torch.empty_like(self.B), persistent=False)

    @torch.no_grad()
    def init(self, layer: nn.Module) -> None:
        """The r largest singular triplets, √(S_r/s) to each side."""
        U, S, Vh = torch.linalg.svd(weight_of(layer).to(self.A.dtype), full_matrices=False)
        root = (S[: self.rank] / self.scale).sqrt()
        self.A.copy_(root[:, None] * Vh[: self.rank])
        self.B.copy_(U[:, : self.rank] * root)
        self.A0.copy_(self.A)
        self.B0.copy_(self.B)

    @torch.no_grad()
    def residual(self, weight: Tensor) -> Tensor:
        """W_res = W - s B₀ A₀ (out, in) in W's dtype, one rank-one term after the other in fp64."""
        rest = weight.double()
        A, B = self.A0.double(), self.B0.double() * self.scale
        for a, b in zip(A, B.T, strict=True):
            rest = rest - torch.outer(b, a)
        return rest.to(weight.dtype)

    def install(self, layer: nn.Module) -> None:
        """Give the layer W_res in a parameter of its own; W, and what is tied to it, is not written."""
        now: Tensor = layer.weight  # type: ignore[assignment]
        rest = self.kind.stored(self.residual(self.kind.matrix(now.detach())), layer)
        installed = nn.Parameter(rest, requires_grad=False)
        # Past nn.Module's registration: W must appear neither among the parameters nor in the state dict.
        self.__dict__.update(original=now, installed=installed)
        put_aside(layer, "weight", installed)

    def remove(self, layer: nn.Module) -> None:
        """Forget W, which the layer gets back, and the residual."""
        del self.__dict__["original"], self.__dict__["installed"]

    def conflict(self, other: Variant) -> str | None:
        """DoRA scales W, of which PiSSA leaves the residual."""
        if other.Config.variant == "dora":
            return "DoRA scales the base weight, of which PiSSA leaves a residual"
        return super().conflict(other)

    def state(self, layer: nn.Module) -> dict[str, Tensor]:
        """A, B and their initial values. Raises ValueError if W_res is no longer what these rebuild."""
        if "original" in self.__dict__:
            original, installed = (
                self.kind.matrix(self.__dict__[n].detach()) for n in ("original", "installed")
            )
            if not torch.equal(self.residual(original.to(self.A0.device)), installed):
                raise ValueError(
                    "PiSSA's residual weight was changed since attach (a dtype conversion, or a write), so this "
                    "adapter could not be reloaded; attach in the final dtype, or merge"
                )
        return {**super().state(layer), **{key: getattr(self, name) for key, name in INITIAL.items()}}

    def expected(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        own = super().expected()
        return {**own, "A_initial": own["A"], "B_initial": own["B"]}

    def fingerprint(self, layer: nn.Module) -> str:
        """sha256 of W."""
        return checkpoint.digest(own(layer))

    def restore(self, layer: nn.Module, tensors: dict[str, Tensor]) -> None:
        super().restore(layer, tensors)
        for key, name in INITIAL.items():
            getattr(self, name).copy_(tensors[key])
