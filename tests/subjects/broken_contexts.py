"""Wrong subjects that a plain call of a fresh layer does not tell from right ones: caches, copies, casts, contexts."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

import lora_lite
from harness.subjects.lora_lite import LoraLite
from oracles.implementation import Adapted, AdapterSpec
from tests.subjects import hooked, odd, subclassed, wrapped
from tests.subjects.broken import Subclassed, add, layer, library

QUIET = "init shapes forward save_load"

# --- what the base layer's output is to autograd


@layer("lora", "contexts.leaf_output", "Partial", QUIET)
class AddsInPlace(wrapped.Lora):
    """The update is added to the base's output in place, which autograd refuses where that is a leaf of the graph."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        y += self.branch(x).to(y.dtype)
        return y


# --- evaluation mode and gradients off


@layer("dora", "contexts.written_in_eval", "Buggy", "init shapes")
class NormOfFirstEvaluation(wrapped.Dora):
    """The row norms of the first call in evaluation mode are kept until training mode."""

    kept: Tensor | None = None

    def norm(self) -> Tensor:
        if self.training:
            self.kept = None
            return super().norm()
        if self.kept is None:
            self.kept = super().norm()
        return self.kept


class FoldsOnceInEval(subclassed.LoraLinear):
    """The weight of the first call in evaluation mode is kept for good, but for a call in training mode in between."""

    def train(self, mode: bool = True) -> None:
        nn.Linear.train(self, mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.cached = None
        return super().forward(x)


add(
    "lora",
    "FoldsOnceInEval",
    lambda: Subclassed(FoldsOnceInEval),
    "contexts.written_in_eval",
    "Buggy",
    "init shapes",
)


@layer("lora", "contexts.no_grad", "Buggy", "init shapes save_load")
class UnscaledWithoutGradients(wrapped.Lora):
    """The path without gradients forgets the scale."""

    def branch(self, x: Tensor) -> Tensor:
        y = super().branch(x)
        return y if torch.is_grad_enabled() else y / self.s


@layer("lora", "contexts.no_grad", "Buggy", "init shapes")
class FoldsInForGood(wrapped.Lora):
    """Without gradients the update is added to the weight, which is faster, and stays there."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return super().forward(x)
        self.base.weight += (self.s * self.B @ self.A).to(self.base.weight.dtype)
        return self.base(x)


@layer("lora", "contexts.inference_mode", "Buggy", QUIET)
class ScaledTwiceInInference(wrapped.Lora):
    """The fast path for inference multiplies by the scale once more."""

    def branch(self, x: Tensor) -> Tensor:
        y = super().branch(x)
        return y * self.s if torch.is_inference_mode_enabled() else y


@layer("delora", "contexts.inference_mode", "Partial", QUIET)
class KeepsAnInferenceTensor(wrapped.Delora):
    """A factor of the first call is kept by the version of its parameters, and with it a tensor autograd cannot use."""

    kept: tuple[Any, Tensor] | None = None

    def branch(self, x: Tensor) -> Tensor:
        now = (self.A._version, self.B._version, self.lambda_._version)
        if self.kept is None or self.kept[0] != now or (self.training and not self.kept[1].is_inference()):
            self.kept = (now, self.factor())
        return fn.linear(fn.linear(x * self.w_norm, self.A) * self.kept[1], self.B)


# --- gradients that training uses


@layer("lora", "contexts.frozen_input", "Buggy", QUIET)
class NoGradientWithoutInput(wrapped.Lora):
    """What x asks for decides whether the parameters get a gradient."""

    def branch(self, x: Tensor) -> Tensor:
        y = super().branch(x)
        return y if x.requires_grad else y.detach()


@layer("lora", "contexts.partly_frozen", "Buggy", QUIET)
class OffWhereFrozen(wrapped.Lora):
    """An adapter of which nothing trains is taken for one that is switched off."""

    def branch(self, x: Tensor) -> Tensor:
        y = super().branch(x)
        return y if self.A.requires_grad or self.B.requires_grad else torch.zeros_like(y)


@layer("dora", "contexts.partly_frozen", "Buggy", QUIET)
class DetachedWithItsMagnitude(wrapped.Dora):
    """A fast path without a graph, taken wherever the magnitude is frozen."""

    def forward(self, x: Tensor) -> Tensor:
        y, base = super().forward(x), self.base(x)
        return y if self.m.requires_grad else base + (y - base).detach()


class Overwriting(torch.autograd.Function):
    """x Aᵀ whose backward writes A's gradient instead of adding to it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.A = A
        return x @ A.T

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        ctx.A.grad = G.reshape(-1, G.shape[-1]).T @ x.reshape(-1, x.shape[-1])
        return G @ ctx.A.detach(), None


@layer("lora", "contexts.accumulation", "Buggy", "init shapes")
class OverwritesGradients(wrapped.Lora):
    """Accumulated gradients are the last pass's."""

    def branch(self, x: Tensor) -> Tensor:
        return fn.linear(Overwriting.apply(self.drop(x.to(self.dtype)), self.A), self.B) * self.s


class LastInput(torch.autograd.Function):
    """x Aᵀ that keeps its input on the module, where the next call replaces it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, owner: Any) -> Tensor:
        owner.last, ctx.owner = x.detach(), owner
        ctx.save_for_backward(A)
        return x @ A.T

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, Tensor, None]:
        (A,) = ctx.saved_tensors
        x = ctx.owner.last
        return G @ A, G.reshape(-1, G.shape[-1]).T @ x.reshape(-1, x.shape[-1]), None


@layer("lora", "contexts.accumulation", "Buggy", "init shapes save_load")
class InputOfLastCall(wrapped.Lora):
    """Of a layer that is called twice only the last call's input is known in the backward pass."""

    def branch(self, x: Tensor) -> Tensor:
        return fn.linear(LastInput.apply(self.drop(x.to(self.dtype)), self.A, self), self.B) * self.s


@layer("lora", "contexts.checkpoint", "Buggy", "init shapes")
class MaskOfItsOwn(wrapped.Lora):
    """Masks come from a generator on the module, which a checkpoint does not put back."""

    def build(self) -> None:
        super().build()
        self.masks = torch.Generator().manual_seed(torch.initial_seed() % 2**31)

    def branch(self, x: Tensor) -> Tensor:
        if self.training and self.spec.dropout:
            keep = torch.rand(x.shape, generator=self.masks) >= self.spec.dropout
            x = x * keep / (1 - self.spec.dropout)
        return fn.linear(fn.linear(x.to(self.dtype), self.A), self.B) * self.s


# --- autocast


@layer("lora", "contexts.autocast_dtype", "Partial", QUIET)
class HalfUnderAutocast(wrapped.Lora):
    """Answers in float16 whatever autocast asks for."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.half() if torch.is_autocast_enabled("cpu") else y


@layer("dora", "contexts.autocast_dtype", "Faithful-with-doc-gap", QUIET)
class WideUnderAutocast(wrapped.Dora):
    """Answers in the parameters' precision."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(self.m.dtype) if x.dtype == self.m.dtype else super().forward(x)


@layer("dora", "contexts.autocast", "Buggy", QUIET)
class NormsInHalf(wrapped.Dora):
    """Under autocast the row norms are taken in float16, where squares of small weights vanish."""

    def norm(self) -> Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return super().norm()
        return self.v().detach().half().square().sum(1).sqrt().to(self.dtype)


@layer("lora", "contexts.autocast", "Buggy", QUIET)
class LosesGradientUnderAutocast(wrapped.Lora):
    """The cast that autocast makes necessary is made on the data."""

    def branch(self, x: Tensor) -> Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return super().branch(x)
        return fn.linear(fn.linear(self.drop(x), self.A.data.bfloat16()), self.B) * self.s


# --- torch.compile


@layer("lora", "contexts.compile", "Partial", QUIET)
class UnscaledWhenCompiled(wrapped.Lora):
    """The path for compiling forgets the scale."""

    def branch(self, x: Tensor) -> Tensor:
        y = super().branch(x)
        return y / self.s if torch.compiler.is_compiling() else y


@layer("lora", "contexts.compile", "Faithful-with-doc-gap", QUIET)
class CompiledAtEveryStep(wrapped.Lora):
    """A number that changes at every step is taken into the graph as a constant."""

    calls = "x"

    def branch(self, x: Tensor) -> Tensor:
        self.calls += "x"
        return super().branch(x) if len(self.calls) > 1 else x


# --- copies and casts


class ClosesOver(hooked.Library):
    """The hooks know the adapter, not the layer: a deep copy computes with the original's."""

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        found = super().adapt(base, spec)
        adapter = base.adapter
        for handle in adapter.handles:
            handle.remove()
        adapter.handles = [
            base.register_forward_pre_hook(lambda layer, args: (adapter.before(layer, args[0]), *args[1:])),
            base.register_forward_hook(lambda layer, args, y: adapter.after(layer, args[0], y)),
        ]
        return found


for _variant in ("lora", "ia3"):
    add(_variant, "ClosesOver", ClosesOver, "contexts.deepcopy", "Partial", "init shapes forward")


@layer("lora", "contexts.deepcopy", "Partial", QUIET)
class CopySharesFactors(wrapped.Lora):
    """A deep copy has parameters in common with the original."""

    def __deepcopy__(self, memo: dict[int, Any]) -> CopySharesFactors:
        twin = type(self)(copy.deepcopy(self.base, memo), self.spec)
        twin.B = self.B
        twin.A = nn.Parameter(self.A.detach().clone())
        return twin


@layer("lora", "contexts.pickle", "Partial", QUIET)
class PickledWithoutScale(wrapped.Lora):
    """What is pickled lacks the alpha."""

    def __getstate__(self) -> dict[str, Any]:
        spec = AdapterSpec(self.spec.variant, rank=self.spec.rank, alpha=self.spec.rank)
        return {**self.__dict__, "spec": spec}


@layer("delora", "contexts.state_dict", "Partial", "init forward")
class NormNotInState(wrapped.Delora):
    """The norms are a buffer that the state dict leaves out."""

    def build(self) -> None:
        super().build()
        norm = self.w_norm
        del self.w_norm
        self.register_buffer("w_norm", norm, persistent=False)


@layer("dora", "contexts.state_dict", "Partial", "init forward")
class MagnitudeNotRestored(wrapped.Dora):
    """Loading keeps the magnitude of the twin."""

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *more: Any) -> None:
        super()._load_from_state_dict({n: t for n, t in state.items() if n != f"{prefix}m"}, prefix, *more)


@layer("lora", "contexts.cast_and_back", "Partial", "init forward")
class ScaleInABuffer(wrapped.Lora):
    """The scale is a tensor that is cast with the module."""

    def build(self) -> None:
        super().build()
        self.register_buffer("factor", torch.tensor(self.s, dtype=self.dtype), persistent=False)

    def branch(self, x: Tensor) -> Tensor:
        return fn.linear(fn.linear(self.drop(x.to(self.dtype)), self.A), self.B) * self.factor


@library("ia3", "contexts.base_in_eval", "Buggy", "init shapes forward")
class GatesNothingInEval(wrapped.Library):
    """Over a base in evaluation mode the adapter is taken for a merged one."""

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        found = super().adapt(base, spec)
        if not base.training:
            found.module.forward = base.forward
        return found


class NeverFoldsOverEval(odd.FoldingLayer):
    """Over a base in evaluation mode eval() folds nothing, and the base answers."""

    def __init__(self, base: nn.Linear, spec: AdapterSpec) -> None:
        super().__init__(base, spec)
        self.disabled = not base.training

    def train(self, mode: bool = True) -> odd.FoldingLayer:
        if not self.disabled:
            return super().train(mode)
        self.kept = None if mode else self.weight.data
        return nn.Linear.train(self, mode)


class LeavesEvalAlone(odd.Folding):
    """As above."""

    layer = NeverFoldsOverEval


add("lora", "NeverFoldsOverEval", LeavesEvalAlone, "contexts.base_in_eval", "Buggy", "init shapes forward")


# --- modes, merging, loading


@layer("hra", "init.finite_modes", "Partial", "init shapes forward")
class PairsToOrthogonalise(wrapped.Hra):
    """Gram-Schmidt of columns that start in equal pairs, as in the references: nothing is left of every second one."""

    def start_u(self, in_: int, r: int) -> Tensor:
        U = super().start_u(in_, r)
        return U if r % 2 or not self.spec.gram_schmidt else U[:, ::2].repeat_interleave(2, dim=1)


@layer("ia3", "forward.pure_modes", "Partial", "init shapes forward")
class GatesInPlace(wrapped.Ia3):
    """The feed-forward mode multiplies the input itself."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.spec.feedforward or x.requires_grad:
            return super().forward(x)
        with torch.no_grad():
            x *= self.l
        return self.base(x)


@layer("delora", "merge.at_init", "Buggy", "init shapes forward merge")
class MergesUnclamped(wrapped.Delora):
    """Merging divides by the norms as they are."""

    def weight(self) -> Tensor:
        factor = self.lambda_ / self.spec.rank / (self.A.norm(dim=1) * self.B.norm(dim=0))
        return self.w0 + (self.B * factor) @ self.A * self.w_norm


@layer("lora", "merge.in_training", "Buggy", "init shapes forward merge")
class MergesWithDropout(wrapped.Lora):
    """The merged weight is read off by asking the branch, in whatever mode it is."""

    def weight(self) -> Tensor:
        return self.w0 + self.branch(torch.eye(self.base.in_features, dtype=self.dtype)).T


class MergesModels(LoraLite):
    """Folds what there is in a model."""

    name = "merges_models"

    def merge_model(self, model: nn.Module) -> nn.Module:
        return lora_lite.merge(model)


@library("lora", "merge.model", "Partial", "init shapes forward merge")
class LeavesTransposed(MergesModels):
    """Of GPT-2's transposed layers the adapters are taken off, not folded in."""

    def merge_model(self, model: nn.Module) -> nn.Module:
        for module in model.modules():
            if type(module).__name__ == "Conv1D" and hasattr(module, "lora_lite"):
                lora_lite.detach(module)
        return lora_lite.merge(model) if lora_lite.adapters(model) else model


@library("lora", "checkpoints.frozen", "Partial", "init shapes forward")
class ThawsOnLoading(LoraLite):
    """Loading a checkpoint thaws the whole model."""

    def load_peft(self, model: nn.Module, folder: Path) -> Mapping[str, Adapted]:
        found = super().load_peft(model, folder)
        model.requires_grad_(True)
        return found


@library("dora", "save_load.roles", "Partial", "init shapes forward save_load")
class LoadsFrozenMagnitude(wrapped.Library):
    """What was loaded trains but for the magnitude."""

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        found = super().load(base, spec, path)
        found.slots["m"].tensor.requires_grad_(False)
        return found


@library("ia3", "save_load.roles", "Partial", "init shapes forward save_load")
class LoadsTrainableBase(wrapped.Library):
    """Loading thaws the base."""

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        found = super().load(base, spec, path)
        base.requires_grad_(True)
        return found


@layer("dora", "init.half", "Faithful-with-doc-gap", "init shapes forward save_load")
class MagnitudeOfTheBase(wrapped.Dora):
    """The rows' lengths are taken in the dtype that the base has."""

    def start_m(self) -> Tensor:
        return self.base.weight.detach().norm(dim=1).to(self.dtype)


@layer("delora", "init.half", "Partial", "init shapes forward save_load")
class NoNormsInHalf(wrapped.Delora):
    """Over a half-precision base the norms are left at one."""

    def start_norm(self) -> Tensor:
        norm = super().start_norm()
        return norm if self.base.weight.dtype == self.dtype else torch.ones_like(norm)
