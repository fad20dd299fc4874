"""Wrong subjects, each in just what one check asks: in one mode, in one dtype, at the start only, after a few steps."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as fn

from harness.subjects.lora_lite import LoraLite
from oracles.implementation import Adapted, AdapterSpec
from tests.subjects import files, wrapped
from tests.subjects.broken import layer, library

HALF = 2  # bytes of an entry
LAYER = "save_load init scale shapes step0 merge"
FILES = "init scale forward shapes dropout merge training step0"


# --- at the start, or after a few steps, only


@layer("lora", "forward.at_init", "Buggy", "save_load scale shapes")
class BiasLostWhileZero(wrapped.Lora):
    """While B is zero there is a short cut, and it forgets the bias."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.base.bias is None or bool(self.B.any()) else y - self.base.bias


@layer("lora", "step0.input_gradient", "Buggy", "save_load init scale shapes forward")
class NothingPassedDownWhileZero(wrapped.Lora):
    """While B is zero the base layer runs on x without its graph."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x if bool(self.B.any()) else x.detach())
        return (y + self.branch(x)).to(y.dtype)


@layer("lora", "training.sgd training.adamw", "Buggy", "save_load init scale shapes forward step0")
class TiresAfterThreeSteps(wrapped.Lora):
    """From the fourth backward pass on, A gets a tenth of its gradient."""

    passes = 0

    def build(self) -> None:
        super().build()
        self.A.register_hook(self.damped)

    def damped(self, gradient: Tensor) -> Tensor:
        self.passes += 1
        return gradient if self.passes <= 3 else gradient / 10


@layer("lora", "forward.edge_ranks", "Faithful-with-doc-gap", LAYER)
class HighRankRefused(wrapped.Lora):
    """A rank above min(in, out) raises."""

    def __init__(self, base: nn.Linear, spec: AdapterSpec) -> None:
        if spec.rank > min(base.weight.shape):
            raise ValueError(f"rank is {spec.rank}, expected at most {min(base.weight.shape)}")
        super().__init__(base, spec)


# --- in one mode only


@layer("ia3", "dtype.modes", "Partial", LAYER)
class FeedforwardStaysWide(wrapped.Ia3):
    """In the feed-forward mode the output is not cast back."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.to(self.dtype) if self.spec.feedforward else y


@layer("ia3", "init.modes", "Buggy", "save_load scale shapes forward merge")
class FeedforwardGateOff(wrapped.Ia3):
    """In the feed-forward mode the gate starts one per cent too high."""

    def build(self) -> None:
        super().build()
        if self.spec.feedforward:
            self.l.data *= 1.01


@layer("ia3", "merge.modes", "Partial", "save_load init scale shapes forward")
class FeedforwardNotMerged(wrapped.Ia3):
    """In the feed-forward mode the gate is not folded in."""

    def weight(self) -> Tensor:
        return self.w0 if self.spec.feedforward else super().weight()


@library("hra", "save_load.modes", "Partial", FILES)
class LoadsThePlainMode(wrapped.Library):
    """Loading forgets Gram-Schmidt."""

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        return super().load(base, dataclasses.replace(spec, gram_schmidt=False), path)


# --- with dropout only


@layer("lora", "dropout.dtypes", "Partial", LAYER)
class DropoutStaysWide(wrapped.Lora):
    """With dropout the output is not cast back."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.to(self.dtype) if self.training and self.spec.dropout else y


@layer("lora", "dropout.expectation", "Partial", LAYER)
class DropoutDropsHalfAsMuch(wrapped.Lora):
    """Entries are dropped with p/2, and what is kept is divided by 1 − p."""

    def branch(self, x: Tensor) -> Tensor:
        p = self.spec.dropout if self.training else 0.0
        kept = fn.dropout(x.to(self.dtype), p / 2, self.training) * (1 - p / 2) / (1 - p)
        return fn.linear(fn.linear(kept, self.A), self.B) * self.s


@library("lora", "save_load.dropout", "Partial", FILES)
class LoadsWithoutDropout(wrapped.Library):
    """A loaded adapter drops nothing."""

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        return super().load(base, dataclasses.replace(spec, dropout=0.0), path)


# --- in one dtype only


@layer("lora", "dtype.double", "Faithful-with-doc-gap", LAYER)
class NeverDouble(wrapped.Lora):
    """The update of a float64 layer is computed in float32."""

    def branch(self, x: Tensor) -> Tensor:
        A, B = self.A.float(), self.B.float()
        return (fn.linear(fn.linear(self.drop(x.float()), A), B) * self.s).to(self.dtype)


@layer("lora", "dtype.gradients", "Partial", LAYER)
class LossScaleLeftIn(wrapped.Lora):
    """Over a half-precision base the gradient of A keeps a factor that should have been taken out."""

    def build(self) -> None:
        super().build()
        if self.base.weight.dtype.itemsize == HALF:
            self.A.register_hook(lambda gradient: gradient * 1024)


@layer("lora", "merge.half", "Partial", LAYER.replace(" merge", ""))
class HalfMergedUnscaled(wrapped.Lora):
    """Over a half-precision base the update is merged without α/r."""

    def weight(self) -> Tensor:
        half = self.base.weight.dtype.itemsize == HALF
        return self.w0 + self.B @ self.A if half else super().weight()


@library("lora", "save_load.half", "Partial", FILES)
class SavesInTheBasesDtype(wrapped.Library):
    """The file's tensors have the base's dtype, not the adapter's."""

    def save(self, adapted: Adapted, path: Path) -> None:
        dtype = adapted.module.base.weight.dtype
        tensors = {name: t.to(dtype) for name, t in files.state(adapted).items()}
        self.write(tensors, self.method(adapted), path)


# --- files


@library("lora", "save_load.format", "Faithful-with-doc-gap", FILES)
class Pickles(files.InTorchFile, wrapped.Library):
    """torch.save, read with weights_only=True."""


@library("lora", "save_load.interchange", "Partial", FILES)
class PeftsAlphaIgnored(LoraLite):
    """Of PEFT's checkpoints the tensors are read, and lora_alpha is not."""

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        config = path / "adapter_config.json"
        if config.is_file():
            values: Mapping[str, Any] = json.loads(config.read_text(encoding="utf-8"))
            config.write_text(json.dumps({**values, "lora_alpha": values["r"]}), encoding="utf-8")
        return super().load(base, spec, path)
