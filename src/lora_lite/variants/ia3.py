"""(IA)³: y = l ⊙ (x Wᵀ + b), or for a feed-forward layer y = (l ⊙ x) Wᵀ + b."""

from __future__ import annotations

from torch import Tensor, nn

from ..config import IA3Config
from ..variant import Variant, register

__all__ = ["IA3"]


@register
class IA3(Variant):
    """Infused adapter by inhibiting and amplifying inner activations (Liu et al., arXiv 2205.05638v2, §3.3).

    Equation
        Output gate (keys, values): y = l ⊙ (x Wᵀ + b); merged: diag(l) W and l ⊙ b.
        Input gate (feed-forward: the layer after the nonlinearity): y = (x ⊙ l) Wᵀ + b; merged: W diag(l), b.
        Several active ones multiply.
    Shapes
        l (out,), or (in,) for an input gate, in fp32 (fp64 on an fp64 base).
    Initialisation
        l = 1: step 0 is the base bit for bit. There is no rank, no scale and no dropout.

    References
        https://github.com/huggingface/peft/blob/v0.21.2/src/peft/tuners/ia3/layer.py
        https://github.com/r-three/t-few/blob/114deced63ae722a368e06cb08ea956b20c393a6/src/models/lora.py
        https://github.com/r-three/t-few/blob/114deced63ae722a368e06cb08ea956b20c393a6/configs/ia3.json

    Deviations
        - From PEFT: l is a plain vector; PEFT stores (out, 1) or (1, in).
        - From the authors' code: no vector on the untrained side; a gate acts whether or not it is trainable;
          a half-precision layer returns its own dtype. They gate the output of wi_1, PEFT and this the input
          of wo, which is the same position of a gated feed-forward block.
        - Which projections are gated follows PEFT's tables: for Qwen and Gemma q_proj, not the paper's keys.
    """

    Config = IA3Config
    joins = "multiplies"

    @property
    def feedforward(self) -> bool:
        """Whether this layer is gated at its input."""
        return bool(self.options.get("feedforward", False))

    def build(self) -> None:
        """l (in,) for a feed-forward layer, else (out,)."""
        self.l = self.parameter(self.in_features if self.feedforward else self.out_features)

    def hooks(self) -> tuple[bool, bool]:
        """One side alone is gated."""
        return self.feedforward, not self.feedforward

    def init(self, layer: nn.Module) -> None:
        """Ones."""
        nn.init.ones_(self.l)

    def before(self, layer: nn.Module, x: Tensor) -> Tensor:
        """x ⊙ l for a feed-forward layer."""
        return (x * self.l).to(x.dtype) if self.feedforward else x

    def after(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """l ⊙ y otherwise, the bias included."""
        return y if self.feedforward else (y * self.l).to(y.dtype)

    def merged(self, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W diag(l), b; or diag(l) W, l ⊙ b."""
        if self.feedforward:
            return W * self.l, b
        return self.l[:, None] * W, None if b is None else self.l * b
