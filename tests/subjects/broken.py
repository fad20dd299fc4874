"""Wrong subjects, each a right one with one realistic mistake, and what the audit must say of it."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from oracles.implementation import Adapted, AdapterSpec, Implementation
from tests.subjects import files, functional, subclassed, wrapped


@dataclass(frozen=True)
class Broken:
    """A wrong subject. ``caught``: checks that must fail; ``quiet``: aspects in which nothing may."""

    name: str
    variant: str
    make: Callable[[], Implementation]
    caught: tuple[str, ...]
    verdict: str
    quiet: tuple[str, ...] = ()


BROKEN: list[Broken] = []


def layer(variant: str, caught: str, verdict: str, quiet: str = "") -> Callable[[type], type]:
    """Register a wrapped layer that is wrong."""

    def register(cls: type[wrapped.Wrapped]) -> type[wrapped.Wrapped]:
        add(variant, cls.__name__, lambda: wrapped.Library({variant: cls}), caught, verdict, quiet)
        return cls

    return register


def library(variants: str, caught: str, verdict: str, quiet: str = "") -> Callable[[type], type]:
    """Register a library whose own methods are wrong, for some variants."""

    def register(cls: type[Implementation]) -> type[Implementation]:
        for variant in variants.split():
            add(variant, cls.__name__, cls, caught, verdict, quiet)
        return cls

    return register


def add(
    variant: str,
    name: str,
    make: Callable[[], Implementation],
    caught: str,
    verdict: str,
    quiet: str = "",
) -> None:
    """Put one wrong subject in the table."""
    BROKEN.append(Broken(name, variant, make, tuple(caught.split()), verdict, tuple(quiet.split())))


def method(variant: str, name: str, caught: str, verdict: str, quiet: str = "", **changes: object) -> None:
    """Register the functional style with parts of one method replaced."""
    wrong = dataclasses.replace(functional.METHODS[variant], **changes)
    add(variant, name, lambda: functional.Library({variant: wrong}), caught, verdict, quiet)


FORWARD = "forward.random_parameters"

# --- LoRA: scale


@layer("lora", f"scale.effective {FORWARD}", "Buggy", "save_load init shapes")
class SqrtRank(wrapped.Lora):
    """α/√r."""

    s = property(lambda self: self.spec.alpha / math.sqrt(self.spec.rank))


@layer("lora", f"scale.effective {FORWARD}", "Buggy", "save_load init shapes merge")
class NoScale(wrapped.Lora):
    """The factor is forgotten."""

    s = 1.0


@layer("lora", FORWARD, "Buggy", "save_load init shapes merge")
class AlphaIgnoredAtRankOne(wrapped.Lora):
    """Rank 1 is a special case without α."""

    s = property(lambda self: self.spec.alpha / self.spec.rank if self.spec.rank > 1 else 1.0)


@layer("lora", FORWARD, "Buggy", "save_load init shapes merge")
class WholeNumberScale(wrapped.Lora):
    """α // r."""

    s = property(lambda self: float(self.spec.alpha // self.spec.rank))


@layer("lora", FORWARD, "Buggy", "save_load init shapes merge")
class ScaleOfRankEight(wrapped.Lora):
    """The rank that divides is capped."""

    s = property(lambda self: self.spec.alpha / min(self.spec.rank, 4))


@layer("lora", f"{FORWARD} forward.effective_weight", "Buggy", "save_load")
class BiasScaled(wrapped.Lora):
    """The bias is multiplied by the scale too."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.base.bias is None else y + (self.s - 1) * self.base.bias


@layer("lora", FORWARD, "Buggy", "save_load")
class BiasLost(wrapped.Lora):
    """The base's bias is lost."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.base.bias is None else y - self.base.bias


@layer("lora", FORWARD, "Buggy", "save_load init shapes")
class TransposedSquare(wrapped.Lora):
    """A square weight is taken for a transposed one."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        out, in_ = self.base.weight.shape
        return y + x @ (self.base.weight - self.base.weight.T) if out == in_ else y


# --- LoRA: start


@layer("lora", "init.distribution", "Buggy", "save_load scale forward shapes merge dropout")
class KaimingWithoutGain(wrapped.Lora):
    """kaiming_uniform with a = 0: √6 too wide."""

    def start_a(self, A: Tensor) -> None:
        nn.init.kaiming_uniform_(A, a=0)


@layer("lora", "init.distribution", "Faithful-with-doc-gap", "save_load scale forward shapes merge dropout")
class SmallNormal(wrapped.Lora):
    """N(0, 0.02²)."""

    def start_a(self, A: Tensor) -> None:
        nn.init.normal_(A, std=0.02)


@layer("lora", "init.identity init.deterministic", "Buggy", "save_load scale shapes merge")
class BothRandom(wrapped.Lora):
    """B is not zero."""

    def build(self) -> None:
        super().build()
        nn.init.normal_(self.B, std=0.01)


@layer("lora", "init.deterministic init.distribution", "Buggy", "save_load scale shapes merge")
class ZeroA(wrapped.Lora):
    """A is zero and B random: the identity at the start all the same."""

    def build(self) -> None:
        super().build()
        nn.init.zeros_(self.A)
        nn.init.kaiming_uniform_(self.B, a=math.sqrt(5))


@layer("lora", "init.seeded", "Partial", "save_load scale forward shapes merge dropout training")
class OwnGenerator(wrapped.Lora):
    """Drawn from a generator of its own, always alike."""

    def start_a(self, A: Tensor) -> None:
        bound = 1 / math.sqrt(A.shape[1])
        A.data.uniform_(-bound, bound, generator=torch.Generator().manual_seed(A.numel()))


@layer("lora", "init.base_weight", "Buggy", "save_load scale shapes dropout")
class BaseRounded(wrapped.Lora):
    """The base is moved to bf16 and back while attaching."""

    def build(self) -> None:
        super().build()
        self.base.weight.data = self.base.weight.data.bfloat16().to(self.base.weight.dtype)


# --- dropout


@layer("lora", "dropout.active", "Partial", "save_load init scale forward shapes merge training step0")
class DropoutIgnored(wrapped.Lora):
    """dropout is accepted and not used."""

    def build(self) -> None:
        super().build()
        self.drop = nn.Identity()


@layer("lora", "dropout.placement", "Partial", "save_load init scale forward shapes merge training step0")
class DropoutOnOutput(wrapped.Lora):
    """The update is dropped instead of its input."""

    def branch(self, x: Tensor) -> Tensor:
        return self.drop(fn.linear(fn.linear(x.to(self.dtype), self.A), self.B)) * self.s


@layer("lora", "dropout.placement", "Partial", "save_load init scale forward shapes merge training step0")
class DropoutBetween(wrapped.Lora):
    """Dropout in the rank's dimension."""

    def branch(self, x: Tensor) -> Tensor:
        return fn.linear(self.drop(fn.linear(x.to(self.dtype), self.A)), self.B) * self.s


@layer("lora", "dropout.placement", "Partial", "save_load init scale forward shapes merge training step0")
class DropoutOnEverything(wrapped.Lora):
    """The base path is dropped as well."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(x)
        y = self.base(x)
        return (y + fn.linear(fn.linear(x.to(self.dtype), self.A), self.B) * self.s).to(y.dtype)


@layer("lora", "dropout.off_in_eval", "Buggy", "save_load init scale forward shapes training step0")
class DropoutInEval(wrapped.Lora):
    """functional.dropout without training=."""

    def branch(self, x: Tensor) -> Tensor:
        d = fn.dropout(x.to(self.dtype), self.spec.dropout)
        return fn.linear(fn.linear(d, self.A), self.B) * self.s


@layer("lora", "dropout.placement", "Partial", "save_load init scale forward shapes merge training step0")
class DropoutUnscaled(wrapped.Lora):
    """The kept entries are not divided by 1 − p."""

    def branch(self, x: Tensor) -> Tensor:
        keep = torch.rand_like(x) >= self.spec.dropout if self.training and self.spec.dropout else 1.0
        return fn.linear(fn.linear(x.to(self.dtype) * keep, self.A), self.B) * self.s


@layer("lora", "dropout.placement", "Partial", "save_load init scale forward shapes merge training step0")
class DropoutKeepsP(wrapped.Lora):
    """p is taken for the probability to keep."""

    def build(self) -> None:
        super().build()
        self.drop = nn.Dropout(1 - self.spec.dropout) if self.spec.dropout else nn.Identity()


@layer("lora", "dropout.placement", "Partial", "save_load init scale forward shapes merge training step0")
class DropoutPerFeature(wrapped.Lora):
    """One mask for all samples."""

    def branch(self, x: Tensor) -> Tensor:
        mask = self.drop(x.new_ones(x.shape[-1]).to(self.dtype))
        return fn.linear(fn.linear(x.to(self.dtype) * mask, self.A), self.B) * self.s


@layer("lora", "dropout.placement", "Partial", "save_load init scale forward shapes merge training step0")
class DropoutPerSample(wrapped.Lora):
    """Stochastic depth: the whole update of a sample."""

    def branch(self, x: Tensor) -> Tensor:
        mask = self.drop(x.new_ones((*x.shape[:-1], 1)).to(self.dtype))
        return fn.linear(fn.linear(x.to(self.dtype) * mask, self.A), self.B) * self.s


@layer("dora", "dropout.placement", "Partial", "save_load init scale forward shapes merge training step0")
class DoraHalfDropped(wrapped.Dora):
    """The (g − 1) W x part keeps the undropped x."""

    def forward(self, x: Tensor) -> Tensor:
        g, wide = self.m / self.norm(), x.to(self.dtype)
        low = fn.linear(fn.linear(self.drop(wide), self.A), self.B)
        y = self.base(x)
        return (y + (g - 1) * fn.linear(wide, self.w0) + g * self.s * low).to(y.dtype)


@layer("delora", "dropout.active", "Partial", "save_load init scale forward shapes merge training step0")
class DeloraDropoutIgnored(wrapped.Delora):
    """dropout is accepted and not used."""

    def build(self) -> None:
        super().build()
        self.drop = nn.Identity()


# --- which tensors train, dtypes


@layer("lora", "shapes.frozen_base", "Partial", "save_load init scale forward merge dropout dtype")
class BiasTrains(wrapped.Lora):
    """The base's bias is left trainable."""

    def build(self) -> None:
        super().build()
        if self.base.bias is not None:
            self.base.bias.requires_grad_(True)


@layer("ia3", "shapes.frozen_base step0.base_frozen", "Partial", "save_load init scale forward merge dtype")
class WeightTrains(wrapped.Ia3):
    """The base weight is left trainable."""

    def build(self) -> None:
        super().build()
        self.base.weight.requires_grad_(True)


@layer("lora", "dtype.output", "Partial", "save_load init scale forward shapes training step0")
class WideOutput(wrapped.Lora):
    """The output stays in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.branch(x)


@layer("lora", f"{FORWARD}", "Buggy", "save_load init shapes")
class BranchInHalf(wrapped.Lora):
    """The update is computed in bf16 whatever the base is."""

    def branch(self, x: Tensor) -> Tensor:
        A, B = self.A.bfloat16(), self.B.bfloat16()
        return (fn.linear(fn.linear(self.drop(x.bfloat16()), A), B) * self.s).to(self.dtype)


@layer("dora", "dtype.forward dtype.identity", "Buggy", "save_load scale shapes forward")
class NormInHalf(wrapped.Dora):
    """In a half-precision layer the norm is taken with a bf16 accumulator of squares."""

    def norm(self) -> Tensor:
        if self.base.weight.dtype.itemsize > 2:
            return super().norm()
        total = torch.zeros(self.base.out_features, dtype=torch.bfloat16)
        for column in self.v().detach().bfloat16().unbind(1):
            total = total + column * column
        return total.sqrt().to(self.dtype) * 1.03


# --- LoRA: calls


@layer("lora", "forward.pure", "Partial", "scale shapes")
class MutatesInput(wrapped.Lora):
    """x is dropped in place."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        x.data.mul_(0.5)
        return y


@layer("lora", "step0.gradients", "Buggy", "save_load scale shapes")
class SleepsOnce(wrapped.Lora):
    """The first call in training mode gives no gradient."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x).detach() if self.calls == 1 else super().forward(x)


@layer("lora", "forward.gradients step0.gradients training.alive", "Buggy", "save_load init scale shapes")
class NoGrad(wrapped.Lora):
    """The branch runs under no_grad."""

    def branch(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().branch(x)


@layer("lora", "forward.gradients", "Buggy", "save_load init scale shapes")
class ADetached(wrapped.Lora):
    """A gets no gradient."""

    def branch(self, x: Tensor) -> Tensor:
        return fn.linear(fn.linear(self.drop(x.to(self.dtype)), self.A.detach()), self.B) * self.s


@layer("lora", "forward.input_gradient", "Buggy", "save_load init scale shapes training")
class InputDetached(wrapped.Lora):
    """The branch passes no gradient to x."""

    def branch(self, x: Tensor) -> Tensor:
        return super().branch(x.detach())


@layer("lora", "forward.one_dimension", "Partial", "save_load init scale shapes training")
class OnlyMatrices(wrapped.Lora):
    """A x.mT, which a vector does not have."""

    def branch(self, x: Tensor) -> Tensor:
        return (self.s * self.B @ (self.A @ self.drop(x.to(self.dtype)).mT)).mT


@layer("lora", "forward.batch_shapes", "Partial", "save_load init scale shapes training")
class NoEmptyBatch(wrapped.Lora):
    """The largest entry of an empty x is asked for."""

    def branch(self, x: Tensor) -> Tensor:
        size = x.abs().max().detach() + 1
        return super().branch(x / size) * size


@layer("lora", "forward.batch_shapes", "Partial", "save_load init scale shapes training")
class NeedsContiguous(wrapped.Lora):
    """x.view."""

    def branch(self, x: Tensor) -> Tensor:
        return super().branch(x.view(-1, x.shape[-1])).view(*x.shape[:-1], -1)


@layer("lora", "forward.linear", "Buggy", "save_load shapes")
class BatchNormalised(wrapped.Lora):
    """The update is divided by the batch's own size where there are several rows."""

    def branch(self, x: Tensor) -> Tensor:
        y = super().branch(x)
        return y / (1 + 0.01 * y.detach().abs().mean()) if y.dim() > 1 else y


@layer("lora", "forward.eval_mode", "Buggy", "save_load shapes")
class UnscaledInEval(wrapped.Lora):
    """Evaluation has a path of its own, without the scale."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else fn.linear(x, self.base.weight + (self.B @ self.A).to(x.dtype),
                                                                 self.base.bias)  # fmt: skip


@layer("lora", "forward.stale_weights", "Buggy", "save_load shapes")
class StaleInEval(wrapped.Lora):
    """The effective weight of the first evaluation serves for all later ones."""

    cached: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return super().forward(x)
        if self.cached is None:
            self.cached = self.weight().detach().to(x.dtype)
        return fn.linear(x, self.cached, self.base.bias)


@layer("lora", "forward.pure", "Partial", "save_load shapes init")
class RemembersLastCall(wrapped.Lora):
    """A running mean of the updates leaks from call to call."""

    mean: Tensor | float = 0.0

    def branch(self, x: Tensor) -> Tensor:
        y = super().branch(x)
        self.mean = 0.9 * self.mean + 0.1 * float(y.detach().sum())
        return y + 1e-3 * self.mean


@layer("lora", FORWARD, "Buggy", "save_load init shapes")
class Approximate(wrapped.Lora):
    """The contribution is 1e-5 too large: a relative error that fp32 resolves."""

    s = property(lambda self: self.spec.alpha / self.spec.rank * (1 + 3e-5))


# --- structure


@layer(
    "lora", "shapes.bad_rank", "Faithful-with-doc-gap", "save_load init scale forward merge training step0"
)
class RankZero(wrapped.Lora):
    """A rank below one is taken for one."""

    def __init__(self, base: nn.Linear, spec: AdapterSpec) -> None:
        super().__init__(base, dataclasses.replace(spec, rank=max(spec.rank, 1)))


@layer("lora", "shapes.canonical", "Partial", "init dtype")
class ExtraBias(wrapped.Lora):
    """A trainable bias on the update that no reference has."""

    def build(self) -> None:
        super().build()
        self.lora_bias = nn.Parameter(torch.zeros(self.base.out_features, dtype=self.dtype))

    def branch(self, x: Tensor) -> Tensor:
        return super().branch(x) + self.lora_bias

    def merged(self) -> nn.Linear:
        layer = super().merged()
        bias = self.extra() if self.base.bias is None else self.base.bias + self.extra()
        layer.bias = nn.Parameter(bias.detach().to(layer.weight.dtype))
        return layer

    def extra(self) -> Tensor:
        """What the trained bias adds when merged."""
        return self.lora_bias


@layer("lora", "merge.weight", "Buggy", "init dtype forward")
class ExtraBiasMergedTwice(ExtraBias):
    """A trainable bias that no reference has, and that is merged with a factor it does not act with."""

    def extra(self) -> Tensor:
        return 2 * self.lora_bias


@layer("lora", "shapes.roles", "Partial", "save_load init scale merge")
class AFrozen(wrapped.Lora):
    """A does not train (LoRA-FA)."""

    def build(self) -> None:
        super().build()
        self.A.requires_grad_(False)


# --- PiSSA


@layer("pissa", "init.principal", "Buggy", "scale shapes dropout")
class MinorComponents(wrapped.Pissa):
    """The smallest singular triples."""

    def factors(self, W: Tensor) -> tuple[Tensor, Tensor]:
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        root = (S[-self.spec.rank :] / self.s).sqrt()
        return root[:, None] * Vh[-self.spec.rank :], U[:, -self.spec.rank :] * root


@layer("pissa", "init.principal", "Buggy", "scale shapes dropout")
class Unbalanced(wrapped.Pissa):
    """All singular values in B."""

    def factors(self, W: Tensor) -> tuple[Tensor, Tensor]:
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        r = self.spec.rank
        return Vh[:r], U[:, :r] * S[:r] / self.s


@layer("pissa", "init.principal", "Buggy", "scale shapes dropout")
class NoRoot(wrapped.Pissa):
    """α/r is divided out of B alone."""

    def factors(self, W: Tensor) -> tuple[Tensor, Tensor]:
        A, B = super().factors(W)
        return A * self.s**0.5, B / self.s**0.5


@layer("pissa", "init.residual init.identity", "Buggy", "scale shapes dropout")
class Uncompensated(wrapped.Pissa):
    """Neither the factors nor the residual know α/r."""

    def factors(self, W: Tensor) -> tuple[Tensor, Tensor]:
        A, B = super().factors(W)
        return A * self.s**0.5, B * self.s**0.5

    def rest(self, A: Tensor, B: Tensor) -> Tensor:
        return self.w0 - B @ A


@layer("pissa", "init.residual init.identity", "Buggy", "scale shapes dropout")
class ResidualForgotten(wrapped.Pissa):
    """The base keeps its principal part."""

    def rest(self, A: Tensor, B: Tensor) -> Tensor:
        return self.w0.clone()


@layer("pissa", "init.residual", "Buggy", "shapes dropout")
class ResidualInHalf(wrapped.Pissa):
    """B A is multiplied out in bf16."""

    def rest(self, A: Tensor, B: Tensor) -> Tensor:
        return self.w0 - (self.s * B.bfloat16() @ A.bfloat16()).to(self.dtype)


@layer("pissa", "init.principal", "Buggy", "scale dropout")
class VForVh(wrapped.Pissa):
    """torch.linalg.svd's Vh read as torch.svd's V."""

    def factors(self, W: Tensor) -> tuple[Tensor, Tensor]:
        A, B = super().factors(W)
        S, Vh = torch.linalg.svd(W, full_matrices=False)[1:]
        if Vh.shape[0] < Vh.shape[1]:
            return A, B
        r = self.spec.rank
        return (S[:r] / self.s).sqrt()[:, None] * Vh[:, :r].T, B


@layer("pissa", "init.principal", "Faithful-with-doc-gap", "scale shapes dropout")
class RandomisedSvd(wrapped.Pissa):
    """svd_lowrank with q = r and no power iterations, which PEFT offers as `pissa_niter_0`."""

    def factors(self, W: Tensor) -> tuple[Tensor, Tensor]:
        U, S, V = torch.svd_lowrank(W, q=self.spec.rank, niter=0)
        root = (S / self.s).sqrt()
        return (V * root).T, U * root


@library("pissa", "save_load.other_base", "Partial", "init scale forward shapes dropout merge training step0")
class ResidualNotSaved(wrapped.Library):
    """Only A and B are stored; loading takes the SVD of whatever base it gets."""

    def save(self, adapted: Adapted, path: Path) -> None:
        tensors = {n: t for n, t in files.state(adapted).items() if n != "W"}
        self.write(tensors, "pissa", path)

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        method, tensors = self.read(path)
        if method != "pissa" or set(tensors) != {"A", "B"}:
            raise files.BadFileError("no PiSSA adapter")
        adapted = self.adapt(base, spec)
        with torch.no_grad():
            for name, tensor in tensors.items():
                if adapted.slots[name].tensor.shape != tensor.shape:
                    raise files.BadFileError(f"{name} has another shape")
                adapted.slots[name].tensor.copy_(tensor)
        return adapted


# --- DoRA


@layer("dora", "forward.gradients", "Buggy", "save_load init scale shapes merge dropout")
class NormAttached(wrapped.Dora):
    """Gradient through the norm, and not a word about it."""

    def norm(self) -> Tensor:
        return self.v().norm(dim=1)


@layer("dora", FORWARD, "Buggy", "save_load")
class NormOverInputs(wrapped.Dora):
    """The column norm, one number for the whole layer's rows taken by its mean."""

    def norm(self) -> Tensor:
        return self.v().detach().norm(dim=0).mean().expand(self.base.out_features)


@layer("dora", FORWARD, "Buggy", "save_load init shapes")
class DoraBiasScaled(wrapped.Dora):
    """g multiplies the bias as well."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        g = self.m / self.norm()
        return y if self.base.bias is None else (y + (g - 1) * self.base.bias).to(y.dtype)


@layer("dora", FORWARD, "Buggy", "save_load init shapes")
class NormUnscaled(wrapped.Dora):
    """‖W + B A‖ without α/r."""

    def norm(self) -> Tensor:
        return (self.w0 + self.B @ self.A).detach().norm(dim=1)


@layer("dora", FORWARD, "Buggy", "save_load init shapes")
class NormOfBase(wrapped.Dora):
    """‖W‖, not ‖V‖."""

    def norm(self) -> Tensor:
        return self.w0.norm(dim=1)


@layer("dora", "init.deterministic", "Buggy", "save_load scale forward shapes dropout merge")
class MagnitudeWithEps(wrapped.Dora):
    """m = ‖W‖ + 1e-4."""

    def start_m(self) -> Tensor:
        return super().start_m() + 1e-4


@layer("dora", "init.deterministic", "Buggy", "save_load scale forward shapes dropout merge")
class MagnitudeSquaredEps(wrapped.Dora):
    """m = √(‖W‖² + 1e-5)."""

    def start_m(self) -> Tensor:
        return (self.w0.square().sum(1) + 1e-5).sqrt()


@layer("dora", FORWARD, "Buggy", "save_load shapes dropout")
class NormWithEps(wrapped.Dora):
    """‖V‖ + 1e-4 divides."""

    def norm(self) -> Tensor:
        return super().norm() + 1e-4


@layer("dora", "shapes.roles", "Partial", "save_load init scale dropout merge")
class MagnitudeFrozen(wrapped.Dora):
    """m does not train."""

    def build(self) -> None:
        super().build()
        self.m.requires_grad_(False)


@layer("dora", "forward.gradients", "Buggy", "save_load init scale shapes merge dropout")
class DirectionDetached(wrapped.Dora):
    """All of V is detached, not its norm only."""

    def forward(self, x: Tensor) -> Tensor:
        V = self.v().detach()
        y = fn.linear(x.to(self.dtype), (self.m / V.norm(dim=1))[:, None] * V, self.base.bias)
        d = self.drop(x.to(self.dtype)) - x.to(self.dtype)
        g = self.m / V.norm(dim=1)
        return (y + fn.linear(d, g[:, None] * V - self.w0)).to(x.dtype)


@layer("dora", "merge.weight", "Buggy", "save_load init scale forward shapes dropout training step0")
class MergeWithoutMagnitude(wrapped.Dora):
    """Merges as LoRA does."""

    def weight(self) -> Tensor:
        return self.v()


# --- (IA)³


@layer("ia3", "shapes.canonical", "Partial", "merge dropout")
class WrongSide(wrapped.Ia3):
    """The two sides are exchanged."""

    def __init__(self, base: nn.Linear, spec: AdapterSpec) -> None:
        super().__init__(base, dataclasses.replace(spec, feedforward=not spec.feedforward))


@layer("ia3", FORWARD, "Partial", "save_load init shapes")
class BiasNotGated(wrapped.Ia3):
    """The bias is added after the gate, as in one of the authors' two paths."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.base.bias is None or self.spec.feedforward:
            return y
        return (y + self.base.bias * (1 - self.l)).to(y.dtype)


@layer("ia3", "shapes.modes", "Partial", "save_load init scale forward merge training step0")
class FeedforwardIgnored(wrapped.Ia3):
    """The option is accepted and ignored."""

    def __init__(self, base: nn.Linear, spec: AdapterSpec) -> None:
        super().__init__(base, dataclasses.replace(spec, feedforward=False))


@layer("ia3", "init.deterministic init.identity", "Buggy", "save_load shapes merge")
class RandomGate(wrapped.Ia3):
    """l starts near one."""

    def build(self) -> None:
        super().build()
        nn.init.normal_(self.l, mean=1.0, std=1e-3)


@layer("ia3", f"init.deterministic {FORWARD}", "Buggy", "save_load shapes")
class OnePlusGate(wrapped.Ia3):
    """1 + l, l from zero."""

    def build(self) -> None:
        super().build()
        nn.init.zeros_(self.l)

    def forward(self, x: Tensor) -> Tensor:
        if self.spec.feedforward:
            return self.base((x * (1 + self.l)).to(x.dtype))
        y = self.base(x)
        return (y * (1 + self.l)).to(y.dtype)


@layer("ia3", "forward.modes", "Buggy", "save_load init scale shapes")
class FeedforwardGatesBias(wrapped.Ia3):
    """In the feed-forward mode the bias is multiplied by the gate's mean."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.base.bias is None or not self.spec.feedforward:
            return y
        return (y + self.base.bias * (self.l.mean() - 1)).to(y.dtype)


@layer("ia3", "merge.weight", "Buggy", "save_load init scale forward shapes training step0")
class MergeLeavesBias(wrapped.Ia3):
    """The merged bias is not gated."""

    def bias(self) -> Tensor | None:
        return self.base.bias


@layer("ia3", "merge.detach", "Partial", "save_load init scale forward shapes training step0")
class Unscales(wrapped.Ia3):
    """Detaching divides the merged weight by l + 1e-8."""

    def detached(self) -> nn.Linear:
        layer = self.merged()
        if not self.spec.feedforward:
            layer.weight.data /= self.l.data[:, None] + 1e-8
            if layer.bias is not None:
                layer.bias.data /= self.l.data + 1e-8
        return layer


# --- HRA


@layer("hra", FORWARD, "Buggy", "save_load init shapes merge")
class Reversed(wrapped.Hra):
    """H_r … H₁."""

    def order(self) -> list[int]:
        return list(range(self.spec.rank))


@layer("hra", "shapes.canonical step0.dead_parameters", "Buggy", "merge")
class ZeroGate(wrapped.Hra):
    """A gate around the reflections starts at zero."""

    def build(self) -> None:
        super().build()
        self.gate = nn.Parameter(torch.zeros(1, dtype=self.dtype))

    def turned(self, x: Tensor) -> Tensor:
        return x + self.gate * (super().turned(x) - x)


@layer("hra", "init.pairs init.identity", "Buggy", "save_load scale forward shapes merge")
class Unpaired(wrapped.Hra):
    """Independent columns."""

    def start_u(self, in_: int, r: int) -> Tensor:
        bound = 1 / math.sqrt(max(r // 2, 1))
        return torch.empty(in_, r, dtype=self.dtype).uniform_(-bound, bound)


@layer("hra", "init.pairs", "Buggy", "save_load scale forward shapes merge")
class Palindrome(wrapped.Hra):
    """u₁ u₂ u₂ u₁."""

    def start_u(self, in_: int, r: int) -> Tensor:
        half = super().start_u(in_, r)[:, ::2][:, : r // 2]
        return torch.cat([half, half.flip(1)], 1) if r % 2 == 0 else super().start_u(in_, r)


@layer("hra", "init.pairs init.identity", "Buggy", "save_load scale forward shapes merge")
class PairedByHalves(wrapped.Hra):
    """u₁ u₂ u₁ u₂."""

    def start_u(self, in_: int, r: int) -> Tensor:
        half = super().start_u(in_, r)[:, ::2][:, : r // 2]
        return torch.cat([half, half], 1) if r % 2 == 0 else super().start_u(in_, r)


@layer("hra", "init.distribution", "Buggy", "save_load scale forward shapes merge")
class BoundOfAllColumns(wrapped.Hra):
    """The bound counts r columns instead of r/2."""

    def start_u(self, in_: int, r: int) -> Tensor:
        return super().start_u(in_, r) / math.sqrt(2)


@layer("hra", FORWARD, "Buggy", "save_load shapes merge")
class HouseholderEps(wrapped.Hra):
    """‖u‖² + 1e-4."""

    def turned(self, x: Tensor) -> Tensor:
        if self.spec.gram_schmidt:
            return super().turned(x)
        for i in self.order():
            u = self.U[:, i]
            x = x - 2 * (x @ u)[..., None] * u / (u.dot(u) + 1e-4)
        return x


@layer("hra", FORWARD, "Buggy", "save_load shapes merge")
class Projections(wrapped.Hra):
    """The factor two is missing."""

    def turned(self, x: Tensor) -> Tensor:
        if self.spec.gram_schmidt:
            return super().turned(x)
        for i in self.order():
            u = self.U[:, i]
            x = x - (x @ u)[..., None] * u / u.dot(u)
        return x


@layer("hra", "forward.gradients", "Buggy", "save_load init scale shapes merge")
class NormConstant(wrapped.Hra):
    """‖u‖² is detached."""

    def turned(self, x: Tensor) -> Tensor:
        if self.spec.gram_schmidt:
            return super().turned(x)
        for i in self.order():
            u = self.U[:, i]
            x = x - 2 * (x @ u)[..., None] * u / u.dot(u).detach()
        return x


@layer("hra", "scale.effective", "Buggy", "save_load init shapes merge")
class StopsAtFour(wrapped.Hra):
    """An unrolled loop handles four reflections at the most."""

    def order(self) -> list[int]:
        return super().order()[:4]


@layer("hra", "shapes.modes", "Partial", "save_load init scale forward merge training step0")
class GramSchmidtIgnored(wrapped.Hra):
    """The option is accepted and ignored."""

    def __init__(self, base: nn.Linear, spec: AdapterSpec) -> None:
        super().__init__(base, dataclasses.replace(spec, gram_schmidt=False))


@layer("hra", "forward.modes", "Buggy", "save_load init scale shapes")
class ClassicalGramSchmidtWithoutNorm(wrapped.Hra):
    """Gram-Schmidt without normalising what it divides by."""

    def q(self) -> Tensor:
        done: list[Tensor] = []
        for u in self.U.unbind(1):
            rest = u - sum(((u @ q) * q for q in done), torch.zeros_like(u))
            done.append(rest / u.norm())
        return torch.stack(done, 1)


def _one_row_norm(W: Tensor, p: Mapping[str, Tensor], spec: AdapterSpec) -> Tensor:
    eye = torch.eye(W.shape[0], dtype=W.dtype)
    for u in p["U"].T:
        # The reflection is built for the output side wherever sizes allow it.
        if u.shape[0] == eye.shape[0]:
            W = (eye - 2 * torch.outer(u, u) / (u @ u)) @ W
        else:
            W = W - 2 * torch.outer(W @ u, u) / (u @ u)
    return W


method("hra", "OutputSideWhenSquare", FORWARD, "Buggy", "save_load init shapes", weight=_one_row_norm)


# --- DeLoRA


@layer("delora", "init.deterministic", "Buggy", "shapes")
class ScalarNorm(wrapped.Delora):
    """One Frobenius norm."""

    def start_norm(self) -> Tensor:
        return self.w0.norm().expand(self.base.in_features).clone()


@layer("delora", FORWARD, "Buggy", "save_load init shapes")
class NoNorm(wrapped.Delora):
    """w_norm is kept and not used."""

    def branch(self, x: Tensor) -> Tensor:
        return fn.linear(fn.linear(x, self.A) * self.factor(), self.B)


@layer("delora", FORWARD, "Buggy", "save_load init shapes merge")
class LambdaNotOverRank(wrapped.Delora):
    """λ instead of λ/r."""

    def factor(self) -> Tensor:
        return super().factor() * self.spec.rank


@layer("delora", FORWARD, "Buggy", "save_load init shapes merge")
class AlphaToo(wrapped.Delora):
    """α/r on top."""

    def factor(self) -> Tensor:
        return super().factor() * self.s


@layer("delora", "shapes.roles", "Partial", "save_load init scale")
class NormTrains(wrapped.Delora):
    """w_norm is a Parameter."""

    def build(self) -> None:
        super().build()
        norm = self.w_norm
        del self.w_norm
        self.w_norm = nn.Parameter(norm)


@layer("delora", "shapes.roles", "Partial", "save_load init scale merge dropout")
class LambdaFrozen(wrapped.Delora):
    """λ does not train."""

    def build(self) -> None:
        super().build()
        self.lambda_.requires_grad_(False)


@layer(
    "delora", "step0.gradients forward.small_parameters", "Buggy", "save_load init scale shapes merge dropout"
)
class ClampTooSmall(wrapped.Delora):
    """1e-12 instead of 1e-4: the first gradient of B is 1e8 times larger."""

    def factor(self) -> Tensor:
        a, b = self.A.norm(dim=1).clamp(min=1e-12), self.B.norm(dim=0).clamp(min=1e-12)
        return self.lambda_ / self.spec.rank / (a * b)


@layer("delora", "step0.gradients", "Buggy", "save_load init scale shapes merge dropout")
class ClampTooLarge(wrapped.Delora):
    """1e-3."""

    def factor(self) -> Tensor:
        a, b = self.A.norm(dim=1).clamp(min=1e-3), self.B.norm(dim=0).clamp(min=1e-3)
        return self.lambda_ / self.spec.rank / (a * b)


@layer("delora", "init.identity", "Buggy", "scale shapes")
class NoClamp(wrapped.Delora):
    """0 · 1/0 at the start."""

    def factor(self) -> Tensor:
        return self.lambda_ / self.spec.rank / (self.A.norm(dim=1) * self.B.norm(dim=0))


@layer("delora", FORWARD, "Buggy", "save_load shapes merge")
class AddedEps(wrapped.Delora):
    """Norms plus 1e-4 instead of clamped at it."""

    def factor(self) -> Tensor:
        a, b = self.A.norm(dim=1) + 1e-4, self.B.norm(dim=0) + 1e-4
        return self.lambda_ / self.spec.rank / (a * b)


@layer("delora", "forward.gradients", "Buggy", "save_load init scale shapes merge dropout")
class XiDetached(wrapped.Delora):
    """The normalisation is a constant for the gradient."""

    def factor(self) -> Tensor:
        a, b = self.A.norm(dim=1).clamp(min=1e-4), self.B.norm(dim=0).clamp(min=1e-4)
        return self.lambda_ / self.spec.rank / (a * b).detach()


@layer("delora", "init.deterministic step0.dead_parameters", "Buggy", "save_load scale shapes forward merge")
class LambdaZero(wrapped.Delora):
    """λ starts at zero and B random, as it must not."""

    def build(self) -> None:
        super().build()
        nn.init.kaiming_uniform_(self.B, a=math.sqrt(5))
        nn.init.zeros_(self.lambda_)


@library("delora", "save_load.stored save_load.other_base", "Partial", "init scale forward shapes dropout")
class NormNotSaved(wrapped.Library):
    """w_norm is taken from the base that is loaded onto."""

    def save(self, adapted: Adapted, path: Path) -> None:
        self.write({n: t for n, t in files.state(adapted).items() if n != "w_norm"}, "delora", path)

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        method, tensors = self.read(path)
        if method != "delora":
            raise files.BadFileError(f"the file holds {method}")
        adapted = self.adapt(copy.deepcopy(base), spec)
        own = self.method(adapted)
        filled = {"w_norm": adapted.slots["w_norm"].tensor, **tensors}
        self.fill(adapted, own, filled)
        return self.fill(self.adapt(base, spec), own, filled)


# --- files, merging, detaching: not of one method alone


@library(
    "lora delora", "save_load.round_trip", "Partial", "init scale forward shapes dropout merge training step0"
)
class SavesHalf(wrapped.Library):
    """The file is in fp16."""

    def write(self, tensors: Mapping[str, Tensor], method: str, path: Path) -> None:
        super().write({name: t.half() for name, t in tensors.items()}, method, path)


@library(
    "lora ia3 hra", "save_load.stored", "Partial", "init scale forward shapes dropout merge training step0"
)
class SavesBase(wrapped.Library):
    """The whole layer is in the file."""

    def save(self, adapted: Adapted, path: Path) -> None:
        tensors = {**files.state(adapted), "base.weight": adapted.module.base.weight.detach().clone()}
        self.write(tensors, self.method(adapted), path)

    def fill(self, adapted: Adapted, method: str, tensors: Mapping[str, Tensor]) -> Adapted:
        return super().fill(adapted, method, {n: t for n, t in tensors.items() if n != "base.weight"})


@library(
    "lora dora delora",
    "save_load.bad_files",
    "Partial",
    "init scale forward shapes dropout merge training step0",
)
class NotStrict(wrapped.Library):
    """Missing tensors keep their random start."""

    def fill(self, adapted: Adapted, method: str, tensors: Mapping[str, Tensor]) -> Adapted:
        return super().fill(adapted, self.method(adapted), {**files.state(adapted), **tensors})


@library(
    "lora ia3", "save_load.bad_files", "Partial", "init scale forward shapes dropout merge training step0"
)
class CutsToFit(wrapped.Library):
    """A tensor that is too large is cut to size."""

    def fill(self, adapted: Adapted, method: str, tensors: Mapping[str, Tensor]) -> Adapted:
        cut = {
            n: t[..., : s.tensor.shape[-1]]
            for n, s in adapted.slots.items()
            if (t := tensors.get(n)) is not None
        }
        return super().fill(adapted, method, cut)


@library("dora", "save_load.round_trip", "Partial", "init scale forward shapes dropout merge training step0")
class MagnitudeFromBase(wrapped.Library):
    """m is stored, and set to ‖W‖ again when loading."""

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        adapted = super().load(base, spec, path)
        with torch.no_grad():
            adapted.slots["m"].tensor.copy_(base.weight.norm(dim=1))
        return adapted


@library(
    "lora hra", "save_load.round_trip", "Partial", "init scale forward shapes dropout merge training step0"
)
class LoadsInOrderOfShape(wrapped.Library):
    """Stored without names and told apart by order; the two factors, or the columns, come back exchanged."""

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        adapted = super().load(base, spec, path)
        with torch.no_grad():
            for slot in adapted.slots.values():
                if slot.tensor.dim() == 2:
                    slot.tensor.copy_(slot.tensor.flip(1))
        return adapted


@library("lora ia3", "save_load.pickled", "Partial", "init scale forward shapes dropout merge training step0")
class Unpickles(files.InTorchFile, wrapped.Library):
    """torch.save, and torch.load with weights_only=False."""

    def read(self, path: Path) -> tuple[str, Mapping[str, Tensor]]:
        found = torch.load(path, weights_only=False)
        return found["method"], found["tensors"]


@library("lora dora", "merge.weight", "Buggy", "init scale forward shapes dropout save_load training step0")
class MergeUnscaled(wrapped.Library):
    """The merged weight lacks α/r."""

    def merge(self, adapted: Adapted) -> nn.Linear:
        layer, spec = adapted.module, adapted.module.spec
        layer.spec = dataclasses.replace(spec, alpha=float(spec.rank))
        merged = layer.merged()
        layer.spec = spec
        return merged


@library("lora pissa delora", "merge.weight", "Buggy", "init scale forward shapes dropout save_load training")
class MergeTwice(wrapped.Library):
    """The update is added twice."""

    def merge(self, adapted: Adapted) -> nn.Linear:
        merged = super().merge(adapted)
        base = adapted.slots["W"].tensor if "W" in adapted.slots else adapted.module.base.weight
        merged.weight.data += merged.weight.data - base
        return merged


@library("lora hra", "merge.weight", "Buggy", "init scale forward shapes dropout save_load training step0")
class MergeLosesBias(wrapped.Library):
    """The merged layer has no bias."""

    def merge(self, adapted: Adapted) -> nn.Linear:
        merged = super().merge(adapted)
        merged.bias = None
        return merged


@library(
    "lora hra pissa", "merge.detach", "Partial", "init scale forward shapes dropout save_load training step0"
)
class DetachGivesMerged(wrapped.Library):
    """Detaching gives the merged layer."""

    def detach(self, adapted: Adapted) -> nn.Linear:
        return self.merge(adapted)


@library("pissa", "merge.detach", "Partial", "init scale forward shapes dropout save_load training step0")
class DetachGivesResidual(wrapped.Library):
    """Detaching gives W_res back instead of W."""

    def detach(self, adapted: Adapted) -> nn.Linear:
        layer = super().detach(adapted)
        layer.weight.data = adapted.slots["W"].tensor.clone()
        return layer


@library("dora ia3", "merge.detach", "Partial", "init scale forward shapes dropout save_load training step0")
class DetachSubtracts(wrapped.Library):
    """Detaching subtracts what merging added: not bitwise the base."""

    def detach(self, adapted: Adapted) -> nn.Linear:
        merged, layer = self.merge(adapted), super().detach(adapted)
        change = merged.weight.data - layer.weight.data
        layer.weight.data = merged.weight.data - change * (1 + 1e-6)
        return layer


# --- the same kind of mistake in other styles


def _gated_mean(b: Tensor, p: Mapping[str, Tensor], spec: AdapterSpec) -> Tensor:
    return b * p["l"].mean()


def _column_magnitude(W: Tensor, p: Mapping[str, Tensor], spec: AdapterSpec) -> Tensor:
    V = functional.lora_weight(W, dict(p), spec)
    return V * (p["m"] / V.detach().norm(dim=1)).mean()


def _clamped(W: Tensor, p: Mapping[str, Tensor], spec: AdapterSpec) -> Tensor:
    A, B = fn.normalize(p["A"], dim=1, eps=1e-4), fn.normalize(p["B"], dim=1, eps=1e-4)
    return W + p["lambda"] / spec.rank * (B @ A) * p["w_norm"]


def _row_norm(W: Tensor, spec: AdapterSpec) -> dict[str, Tensor]:
    return {**functional.delora_start(W, spec), "w_norm": W.norm(dim=1).mean().expand(W.shape[1]).clone()}


def _recomputed(W: Tensor, p: Mapping[str, Tensor], spec: AdapterSpec) -> Tensor:
    return functional.delora_weight(W, {**p, "w_norm": W.norm(dim=0)}, spec)


method("ia3", "BiasGatedByMean", FORWARD, "Buggy", "save_load init shapes", bias=_gated_mean)
method("dora", "OneGainForAllRows", FORWARD, "Buggy", "save_load init shapes", weight=_column_magnitude)
method("delora", "XiOverWrongAxis", FORWARD, "Buggy", "save_load shapes", weight=_clamped)
method("delora", "NormOfRows", "init.deterministic", "Buggy", "shapes", start=_row_norm)
method(
    "delora",
    "NormRecomputed",
    "forward.buffers",
    "Faithful-with-doc-gap",
    "init shapes forward",
    weight=_recomputed,
)
method(
    "lora", "WeightDecayedBase", FORWARD, "Buggy", "save_load shapes",
    weight=lambda W, p, spec: functional.lora_weight(W * (1 - 1e-4), p, spec),
)  # fmt: skip
method(
    "hra", "OneReflectionTooMany", FORWARD, "Buggy", "save_load shapes",
    weight=lambda W, p, spec: functional.hra_weight(W, {"U": torch.cat([p["U"], p["U"][:, :1]], 1)}, spec),
)  # fmt: skip


class MergesIntoItself(subclassed.LoraLinear):
    """Evaluation adds the update to the weight and training never takes it off."""

    def train(self, mode: bool = True) -> None:
        if not mode and self.training:
            self.weight.data += self.scaling * self.lora_B.data @ self.lora_A.data
        super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.unmerged(x) if self.training else fn.linear(x, self.weight, self.bias)


class StaleCache(subclassed.DoraLinear):
    """The cached weight survives training mode."""

    def train(self, mode: bool = True) -> None:
        cached = self.cached
        super().train(mode)
        self.cached = cached


class Subclassed(subclassed.Library):
    """The subclassed style with one layer replaced."""

    def __init__(self, wrong: type[subclassed.AdaptedLinear]) -> None:
        self.wrong = wrong

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        built = self.wrong(base, spec)
        built.taken_from = (base,)
        return Adapted(built, built.slots())


add("lora", "MergesIntoItself", lambda: Subclassed(MergesIntoItself), "forward.eval_mode", "Buggy", "init")
add("dora", "StaleCache", lambda: Subclassed(StaleCache), "forward.stale_weights", "Buggy", "init shapes")
