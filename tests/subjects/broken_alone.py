"""Wrong subjects, each in just what one check asks: in one mode, in one dtype, at the start only, after a few steps."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
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


@layer("lora", "forward.edge_ranks", "Faithful-with-doc-gap", LAYER)
class HighRankCutDown(wrapped.Lora):
    """A rank above min(in, out) is taken for that; α/r stays what it was."""

    def __init__(self, base: nn.Linear, spec: AdapterSpec) -> None:
        lower = min(spec.rank, *base.weight.shape)
        super().__init__(base, dataclasses.replace(spec, rank=lower, alpha=spec.alpha * lower / spec.rank))


@layer("vera", "init.keyed", "Buggy", "scale forward merge")
class MatricesFromTorchsSeed(wrapped.Vera):
    """A and B are drawn from torch's own generator: the key in the spec is not read."""

    def generator(self) -> torch.Generator | None:
        return None


@layer("hra", "forward.odd_rank", "Partial", "save_load scale shapes")
class LastOfAnOddRankLost(wrapped.Hra):
    """Reflections are applied in pairs: of an odd rank the last one is left out."""

    def order(self) -> list[int]:
        """Those that have a partner."""
        return [i for i in super().order() if i < self.spec.rank // 2 * 2]


@layer("hra", "shapes.undefined_rank", "Faithful-with-doc-gap", "scale forward merge save_load")
class OddUnpaired(wrapped.Hra):
    """An odd rank is taken in silence, and starts at a random reflection."""

    def check_rank(self, r: int, in_: int) -> None:
        if r > in_:
            super().check_rank(r, in_)


@layer("pissa", "shapes.undefined_rank", "Faithful-with-doc-gap", "scale forward merge save_load")
class FewerTriples(wrapped.Pissa):
    """A rank above min(in, out) is taken for that in silence."""

    def __init__(self, base: nn.Linear, spec: AdapterSpec) -> None:
        super().__init__(base, dataclasses.replace(spec, rank=min(spec.rank, *base.weight.shape)))


@layer("hra", "shapes.undefined_rank", "Faithful-with-doc-gap", "scale forward merge save_load")
class MoreThanDimensions(wrapped.Hra):
    """With Gram-Schmidt a rank above in is taken, and divides by rounding."""

    def check_rank(self, r: int, in_: int) -> None:
        if r <= in_:
            super().check_rank(r, in_)


# --- what is not taken at all


class Refuses(wrapped.Lora):
    """Raises for some specs or inputs."""

    def forward(self, x: Tensor) -> Tensor:
        if self.refused(x):
            raise RuntimeError("no kernel for this")
        return super().forward(x)

    def refused(self, x: Tensor) -> bool:
        """Whether this call raises."""
        raise NotImplementedError


@layer("lora", "dtype.taken", "Partial", LAYER)
class NoHalf(Refuses):
    """float16 has no kernel."""

    def refused(self, x: Tensor) -> bool:
        return x.dtype == torch.float16


@layer("lora", "forward.inputs", "Partial", LAYER)
class AtMostFourDimensions(Refuses):
    """x of five dimensions has no kernel."""

    def refused(self, x: Tensor) -> bool:
        return x.dim() == 5


@layer("lora", "scale.specs", "Partial", "init shapes forward")
class AlphaMustBeTheRank(Refuses):
    """An alpha other than the rank has no kernel."""

    def refused(self, x: Tensor) -> bool:
        return self.spec.alpha != self.spec.rank


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


@layer("ia3", "merge.modes", "Buggy", "save_load init scale shapes forward")
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


@layer("lora", "dtype.small_steps", "Faithful-with-doc-gap", LAYER)
class FactorsInHalf(wrapped.Lora):
    """A and B are held in the base's dtype, and computed with in float32."""

    def build(self) -> None:
        self.dtype = self.base.weight.dtype
        super().build()
        self.dtype = wrapped.wide(self.dtype)

    def branch(self, x: Tensor) -> Tensor:
        A, B = self.A.to(self.dtype), self.B.to(self.dtype)
        return fn.linear(fn.linear(self.drop(x.to(self.dtype)), A), B) * self.s


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
            spec = dataclasses.replace(spec, alpha=float(values["r"]))
        return super().load(base, spec, path)


# --- gradients with dropout on


class Fused(torch.autograd.Function):
    """s d Aᵀ Bᵀ with a backward pass of its own that has only the undropped x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: Tensor, A: Tensor, B: Tensor, s: float) -> Tensor:
        ctx.save_for_backward(x, A, B)
        ctx.s = s
        return s * (dropped @ A.T) @ B.T

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor | None, ...]:
        x, A, B = ctx.saved_tensors
        rows, g = x.reshape(-1, x.shape[-1]), ctx.s * G.reshape(-1, G.shape[-1])
        return ctx.s * (G @ B) @ A, None, (g @ B).T @ rows, g.T @ (rows @ A.T), None


@layer("lora", "dropout.gradients", "Buggy", LAYER)
class MaskForgottenBackward(wrapped.Lora):
    """The fused backward pass is that of the layer without dropout."""

    def branch(self, x: Tensor) -> Tensor:
        wide = x.to(self.dtype)
        return Fused.apply(wide, self.drop(wide).detach(), self.A, self.B, self.s)


@layer("dora", "dropout.gradients", "Buggy", LAYER)
class ASecondMaskBackward(wrapped.Dora):
    """Checkpointed without the generator's state: the backward pass draws a mask of its own."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        again = super().forward(x)
        return again + (y - again).detach()


# --- evaluation mode


@layer("lora", "forward.base_kept forward.eval_mode", "Buggy", "init shapes step0")
class FoldsAndLeavesIt(wrapped.Lora):
    """eval() folds the update into the base, and train() does not take it out."""

    folded = False

    def train(self, mode: bool = True) -> wrapped.Wrapped:
        if not mode and not self.folded and hasattr(self, "B"):
            self.base.weight.data += (self.s * self.B @ self.A).data.to(self.base.weight.dtype)
        self.folded = not mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) if self.folded else super().forward(x)


@layer("lora", "forward.eval_gradients", "Faithful-with-doc-gap", LAYER)
class FoldsInEvaluation(wrapped.Lora):
    """Evaluation computes with a weight that autograd knows nothing of."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return super().forward(x)
        b = None if self.base.bias is None else self.base.bias.to(self.dtype)
        return fn.linear(x.to(self.dtype), self.weight().detach(), b).to(x.dtype)


@layer("lora", "forward.eval_gradients", "Faithful-with-doc-gap", LAYER)
class EvaluatesInTheLastGraph(wrapped.Lora):
    """Evaluation computes with the weight, and in the graph, of the moment when it began."""

    def train(self, mode: bool = True) -> wrapped.Wrapped:
        if not mode and hasattr(self, "B"):
            self.folded = self.weight()
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.training or not hasattr(self, "folded"):
            return super().forward(x)
        b = None if self.base.bias is None else self.base.bias.to(self.dtype)
        return fn.linear(x.to(self.dtype), self.folded, b).to(x.dtype)


@layer("lora", "forward.mode_answer", "Faithful-with-doc-gap", LAYER)
class AnswersNothing(wrapped.Lora):
    """``train`` forgets to return the layer, and so does torch's ``eval``, which calls it."""

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)


@layer("lora", "init.evaluation_mode", "Faithful-with-doc-gap", LAYER)
class AlwaysInTraining(wrapped.Lora):
    """A fresh adapter is in training mode whatever the base is in."""

    def __init__(self, base: nn.Linear, spec: AdapterSpec) -> None:
        super().__init__(base, spec)
        self.drop.train()


@layer("lora", "forward.mode_answer", "Faithful-with-doc-gap", LAYER)
class KeepsItsFlag(wrapped.Lora):
    """``train`` tells the layers within, and not itself."""

    def train(self, mode: bool = True) -> wrapped.Wrapped:
        if hasattr(self, "drop"):
            self.drop.train(mode)
        return self


# --- starts


@layer("lora", "step0.nothing_trains", "Buggy", "save_load scale shapes merge")
class BothFactorsZero(wrapped.Lora):
    """A is zero, too."""

    def start_a(self, A: Tensor) -> None:
        nn.init.zeros_(A)


@layer("lora", "init.each_layer", "Partial", "save_load scale shapes merge step0 forward")
class SameInEveryLayer(wrapped.Lora):
    """Drawn from a generator that is seeded anew, with torch's own seed, for each layer."""

    def start_a(self, A: Tensor) -> None:
        bound = 1 / A.shape[1] ** 0.5
        A.data.uniform_(-bound, bound, generator=torch.Generator().manual_seed(torch.initial_seed()))


@layer("lora", "init.distribution", "Buggy", "save_load scale shapes merge step0 forward")
class OrthogonalRows(wrapped.Lora):
    """Entries as they should be, but each row is the one before it with its halves exchanged and one negated."""

    def start_a(self, A: Tensor) -> None:
        super().start_a(A)
        half = A.shape[1] // 2
        for even, odd in zip(A.data[::2], A.data[1::2], strict=False):
            odd[:half], odd[half : 2 * half] = even[half : 2 * half].clone(), -even[:half]


# --- merging


@library(
    "lora dora", "merge.weight merge.in_training", "Buggy", "init scale forward shapes dropout save_load"
)
class MergesOnACopy(wrapped.Library):
    """What is merged is thrown away; the base is handed back."""

    def merge(self, adapted: Adapted) -> nn.Linear:
        super().merge(adapted)
        return adapted.module.base


@library("lora", "merge.weight", "Buggy", "init scale forward shapes dropout save_load")
class MergesNegated(wrapped.Library):
    """The update is subtracted."""

    def merge(self, adapted: Adapted) -> nn.Linear:
        merged = super().merge(adapted)
        merged.weight.data = 2 * adapted.module.base.weight.data - merged.weight.data
        return merged


@library("lora", "merge.weight merge.half", "Buggy", "init scale forward shapes dropout save_load")
class MergesSquaresUntransposed(wrapped.Library):
    """The update is added the other way round where that has the weight's shape."""

    def merge(self, adapted: Adapted) -> nn.Linear:
        merged, base = super().merge(adapted), adapted.module.base
        if base.in_features == base.out_features:
            update = merged.weight.data - base.weight.data
            merged.weight.data = base.weight.data + update.T
        return merged


@library("lora", "save_load.round_trip", "Partial", FILES)
class LoadsSquaresTurned(wrapped.Library):
    """The factors are told apart by their sizes, and where both have the same they are exchanged."""

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        adapted = super().load(base, spec, path)
        if base.in_features == base.out_features:
            A, B = adapted.module.A, adapted.module.B
            A.data, B.data = B.data.T.clone(), A.data.T.clone()
        return adapted


@library("lora", "merge.at_init", "Buggy", "init scale forward shapes dropout save_load")
class MergeOfZeroLosesBias(wrapped.Library):
    """A short cut for B = 0 returns the weight alone."""

    def merge(self, adapted: Adapted) -> nn.Linear:
        merged = super().merge(adapted)
        if not bool(adapted.module.B.any()):
            merged.bias = None
        return merged


@layer("lora", "merge.in_training", "Buggy", "init scale forward shapes save_load")
class MergesAMask(wrapped.Lora):
    """W' is read off by asking the layer in whatever mode it is."""

    def weight(self) -> Tensor:
        return self.w0 + self.branch(torch.eye(self.base.in_features, dtype=self.dtype)).T


@layer("lora", "merge.untouched", "Partial", "init scale forward shapes dropout save_load")
class MergedTwiceIsTwice(wrapped.Lora):
    """Each merge adds the update to the base again."""

    def merged(self) -> nn.Linear:
        with torch.no_grad():
            self.base.weight += (self.s * self.B @ self.A).to(self.base.weight.dtype)
        return self.base


@layer("hra", "merge.untouched merge.detach_after", "Partial", "init scale forward shapes save_load")
class MergeLeavesTheBaseMerged(wrapped.Hra):
    """A copy is returned, and the base keeps what was folded in."""

    def merged(self) -> nn.Linear:
        layer = super().merged()
        self.base.weight.data = layer.weight.data.clone()
        return layer


# --- loading


@library("lora dora", "save_load.other_settings", "Partial", FILES)
class AlphaNotStored(wrapped.Library):
    """The file has the tensors alone: alpha is whatever the caller says."""

    def method(self, adapted: Adapted) -> str:
        return "+".join(sorted(adapted.slots))


@library("lora", "save_load.round_trip save_load.other_settings", "Partial", FILES)
class LoadsDefaultAlpha(AlphaNotStored):
    """The file has no alpha, and loading takes 16."""

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        return super().load(base, dataclasses.replace(spec, alpha=16.0), path)


@library("lora dora hra", "save_load.stored save_load.other_base", "Partial", FILES)
class KeepsTheBaseInItsFile(wrapped.Library):
    """The layer's whole state is saved, the base's weight and bias too, and all of it is put back."""

    def save(self, adapted: Adapted, path: Path) -> None:
        torch.save({"state": adapted.module.state_dict()}, path)

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        adapted = self.adapt(base, spec)
        adapted.module.load_state_dict(torch.load(path, weights_only=True)["state"])
        return adapted


@library("lora ia3", "save_load.other_base", "Partial", FILES)
class KeepsTheBiasInItsFile(KeepsTheBaseInItsFile):
    """The base's bias is saved with the adapter, and put over another base's."""

    def save(self, adapted: Adapted, path: Path) -> None:
        state = {n: t for n, t in adapted.module.state_dict().items() if n != "base.weight"}
        torch.save({"state": state}, path)

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        adapted = self.adapt(copy.deepcopy(base), spec)
        adapted.module.load_state_dict(torch.load(path, weights_only=True)["state"], strict=False)
        return adapted


@library("lora", "save_load.roles", "Partial", FILES)
class LoadsFrozen(wrapped.Library):
    """A loaded adapter does not train."""

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        adapted = super().load(base, spec, path)
        adapted.module.requires_grad_(False)
        return adapted


@library("ia3", "save_load.roles", "Partial", FILES)
class LoadingThawsTheBase(wrapped.Library):
    """After loading everything trains, the base too."""

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        adapted = super().load(base, spec, path)
        adapted.module.requires_grad_(True)
        return adapted


# --- what is trainable


@layer("lora", "shapes.frozen_base", "Partial", "init step0 forward merge save_load")
class AsksInVain(wrapped.Lora):
    """The base keeps requires_grad and gets no gradient: its weight is detached in every call."""

    def build(self) -> None:
        super().build()
        self.base.requires_grad_(True)

    def forward(self, x: Tensor) -> Tensor:
        b = None if self.base.bias is None else self.base.bias.detach()
        y = fn.linear(x, self.base.weight.detach(), b)
        return (y + self.branch(x)).to(y.dtype)


@layer("lora", "shapes.frozen_base", "Faithful-with-doc-gap", "init step0 forward merge save_load")
class NumbersThatAskInVain(wrapped.Lora):
    """alpha is kept as a parameter that wants a gradient and never gets one."""

    def build(self) -> None:
        super().build()
        self.kept = nn.ParameterDict({"alpha": nn.Parameter(torch.tensor(float(self.spec.alpha)))})
