"""Wrong readings of an adapter file, each a small change of its meaning, with the sentence that names it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from oracles.vectors.meaning import (
    AdaptedModule,
    bias_update,
    delora_update,
    low_rank,
    split_experts,
    vera_update,
)
from oracles.vectors.update import (
    Gate,
    Linear,
    LowRank,
    Magnitude,
    Reflect,
    Residual,
    Transposed,
    Twice,
    Unchanged,
    Update,
)

Updates = dict[str, Update]


@dataclass(frozen=True)
class Reading:
    """What a wrong consumer would make of one module."""

    id: str
    sentence: str
    updates: Updates  # full tensor name -> update; a tensor that is missing here is read rightly


def wrong_readings(a: AdaptedModule) -> Iterator[Reading]:
    """Those that one module of an adapter file can meet; some may equal the right one at its numbers."""
    right = a.updates()
    yield Reading("not_applied", "the update is not applied", {n: Unchanged(u) for n, u in right.items()})
    changed = {n: u for n, u in right.items() if n.rpartition(".")[2] not in a.replaced}
    if changed:
        yield Reading(
            "applied_twice", "the update is applied twice", {n: twice(u) for n, u in changed.items()}
        )
        opposite: Updates = {n: Linear(u, -1.0) for n, u in changed.items()}
        yield Reading("subtracted", "the update is subtracted", opposite)
    if a.replaced:
        kept: Updates = {a.named(n): Unchanged() for n in a.replaced}
        yield Reading("saved.left_out", "a tensor that the file holds whole is not loaded", kept)
    for find in READINGS.get(a.method, ()):
        yield from find(a)


def twice(update: Update) -> Update:
    """The same merge on what it left; a second residual is taken out of the first result."""
    if isinstance(update, Residual):
        return Linear(update, 2.0)
    return Twice(update, dataclasses.replace(update))  # type: ignore[type-var]


def scales(a: AdaptedModule) -> Iterator[tuple[str, str, float]]:
    """Id, words and value of the scales that a consumer may take."""
    root, default = math.sqrt(a.rank), math.sqrt(a.default_rank or a.rank)
    yield "scale.over_rank", "α/r", a.alpha / a.rank
    yield "scale.over_root_rank", "α/√r", a.alpha / root
    yield "scale.alpha", "α", a.alpha
    yield "scale.one", "1", 1.0
    yield "scale.root_alpha_over_rank", "√(α/r)", math.sqrt(a.alpha / a.rank)
    over = (lambda n: math.sqrt(n)) if a.rslora else float
    bottom = "√r" if a.rslora else "r"
    if a.default_alpha and a.default_alpha != a.alpha:
        yield "pattern.alpha", f"α₀/{bottom} (alpha_pattern ignored)", a.default_alpha / over(a.rank)
    if a.default_rank and a.default_rank != a.rank:
        yield "pattern.rank", f"α/{bottom}₀ (rank_pattern ignored)", a.alpha / over(a.default_rank)
        if a.default_alpha and a.default_alpha != a.alpha:
            both = a.default_alpha / (default if a.rslora else a.default_rank)
            yield "pattern.both", f"α₀/{bottom}₀ (both patterns ignored)", both


def _scaled(a: AdaptedModule) -> Iterator[Reading]:
    said = "α/√r" if a.rslora else "α/r"
    for identity, words, value in scales(a):
        if identity == ("scale.over_root_rank" if a.rslora else "scale.over_rank"):
            continue
        weight = _with_scale(a, value)
        updates = {a.named(n): u for n, u in ({a.parameter: weight} | bias_update(a, value)).items()}
        yield Reading(identity, f"the update is {words} where the file says {said}", updates)


def _with_scale(a: AdaptedModule, scale: float) -> Update:
    right, low = a.updates()[a.named(a.parameter)], low_rank(a, scale)
    if isinstance(right, Residual):
        return Residual(low.left, low.right, principal=a.rank)
    if isinstance(right, Magnitude):
        return Magnitude(low, right.magnitude, right.by_columns)
    return low


def _only(a: AdaptedModule, identity: str, sentence: str, update: Update, tensor: str = "") -> Reading:
    return Reading(identity, sentence, {a.named(tensor or a.parameter): update})


def _layout(a: AdaptedModule) -> Iterator[Reading]:
    low = low_rank(a, a.scale)
    right = a.updates()[a.named(a.parameter)]

    def inside(other: Update) -> Update:
        if isinstance(right, Magnitude) and isinstance(other, LowRank):
            return Magnitude(other, right.magnitude, right.by_columns)
        return other

    if a.method == "lora":
        yield _only(a, "layout.transposed", "the update is transposed", Transposed(low))
    if a.kind == "conv2d" and a.factors["A"].shape[2:] != (1, 1):
        A = a.factors["A"].double().permute(0, 2, 3, 1)
        other = LowRank(low.left, A.flatten(1))
        yield _only(a, "layout.channels_last", "the kernel is read with the channels last", inside(other))
    if a.parts:
        yield from _fused(a, low, inside)
    if a.kind.startswith("experts") and a.experts > 1:
        yield from _expert_layouts(a)


def _fused(a: AdaptedModule, low: LowRank, inside: Callable[[Update], Update]) -> Iterator[Reading]:
    blocks = list(low.left.split(list(a.parts)))
    first = torch.cat([blocks[0], *(torch.zeros_like(b) for b in blocks[1:])])
    yield _only(a, "fused.first_only", "only the first part is adapted", inside(LowRank(first, low.right)))
    rolled = torch.cat([*blocks[1:], blocks[0]])
    yield _only(a, "fused.order", "the parts are in another order", inside(LowRank(rolled, low.right)))
    rows = torch.arange(low.left.shape[0])
    mixed = torch.cat([rows[i :: len(blocks)] for i in range(len(blocks))])
    interleaved = LowRank(low.left[mixed], low.right)
    yield _only(a, "fused.interleaved", "the parts are read as interleaved", inside(interleaved))


def _expert_layouts(a: AdaptedModule) -> Iterator[Reading]:
    A, B, E = a.factors["A"].double(), a.factors["B"].double(), a.experts
    right_A, right_B = split_experts(A, B, E)
    block_B = B.reshape(B.shape[0], E, -1).permute(1, 0, 2)
    fast_A = A.reshape(-1, E, A.shape[1]).permute(1, 0, 2)
    for identity, sentence, first, second in (
        ("experts.B_blocks", "B is read as one block of columns per expert", right_A, block_B),
        ("experts.A_fast", "A is read with the expert counted fastest", fast_A, right_B),
        ("experts.reversed", "the experts are in the opposite order", right_A.flip(0), right_B.flip(0)),
        ("experts.first", "every expert gets the first one's update", *_first(right_A, right_B)),
    ):
        yield _only(a, identity, sentence, _stacked(a, first, second))


def _first(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    return A[:1].expand_as(A), B[:1].expand_as(B)


def _stacked(a: AdaptedModule, A: Tensor, B: Tensor) -> LowRank:
    if a.kind == "experts_in_out":
        return LowRank(a.scale * A.mT.flatten(0, 1), B.mT, experts_view=True)
    return LowRank(a.scale * B.flatten(0, 1), A, experts_view=True)


def _bias(a: AdaptedModule) -> Iterator[Reading]:
    if "bias" in a.factors:
        left_out = Unchanged()
        yield _only(a, "bias.left_out", "the bias of the second matrix is left out", left_out, "bias")
        plain = bias_update(a, 1.0)["bias"]
        yield _only(a, "bias.unscaled", "the bias of the second matrix is not scaled", plain, "bias")


def _dora(a: AdaptedModule) -> Iterator[Reading]:
    low, right = low_rank(a, a.scale), a.updates()[a.named(a.parameter)]
    assert isinstance(right, Magnitude)
    yield _only(a, "dora.plain_lora", "the magnitude is ignored: plain LoRA", low)
    gate = Gate(right.magnitude, by_columns=right.by_columns)
    yield _only(a, "dora.not_normalised", "W + ΔW is scaled by m without its norm", Twice(low, gate))
    yield _only(a, "dora.norm_of_base", "the norm is the base's, without the update", _base_norm(low, right))
    if a.has_bias and not right.by_columns:
        # The factor m/‖V‖ of each output on the bias too: what merging W and b with one gate does.
        yield Reading("dora.bias_scaled", "the bias is scaled with the weight", {a.named("bias"): _Bias(a)})


@dataclass
class _Bias(Update):
    """The bias times m alone: the magnitude taken for a gate on the output."""

    a: AdaptedModule

    def rows(self, W: Tensor, start: int) -> Tensor:
        return W * self.a.factors["m"].double().flatten()[start : start + W.shape[0], None]


@dataclass
class _BaseNorm(Update):
    low: LowRank
    right: Magnitude
    squares: Tensor | None = None

    def prepare(self, blocks) -> None:  # type: ignore[no-untyped-def]
        self.squares = sum((rows.square().sum(0) for _, rows in blocks()), start=torch.zeros(()).double())

    def rows(self, W: Tensor, start: int) -> Tensor:
        m, V = self.right.magnitude.double().flatten(), self.low.rows(W, start)
        if self.right.by_columns:
            assert self.squares is not None
            return V * (m / self.squares.sqrt())
        return V * (m[start : start + W.shape[0]] / torch.linalg.vector_norm(W, dim=1))[:, None]


def _base_norm(low: LowRank, right: Magnitude) -> Update:
    return _BaseNorm(low, right)


def _pissa(a: AdaptedModule) -> Iterator[Reading]:
    low = low_rank(a, a.scale)
    yield _only(a, "pissa.no_residual", "the adapter is added to the whole base, not to the residual", low)


def _ia3(a: AdaptedModule) -> Iterator[Reading]:
    weight = a.updates()[a.named(a.parameter)]
    assert isinstance(weight, Gate)
    both: Updates = {n: Gate(u.l + 1, u.by_columns) for n, u in a.updates().items() if isinstance(u, Gate)}
    yield Reading("ia3.one_plus", "the gate is 1 + l", both)
    inverse: Updates = {n: Gate(1 / u.l, u.by_columns) for n, u in a.updates().items() if isinstance(u, Gate)}
    yield Reading("ia3.divided", "the weight is divided by the gate", inverse)
    if a.has_bias and not a.feedforward:
        yield _only(a, "ia3.bias_not_gated", "the bias is not gated", Unchanged(), "bias")


def _hra(a: AdaptedModule) -> Iterator[Reading]:
    U = a.factors["U"].double()
    if U.shape[1] > 1 and not a.gram_schmidt:
        yield _only(
            a, "hra.reversed", "the reflections are multiplied from the other end", Reflect(U, reverse=True)
        )
        yield _only(
            a, "hra.gram_schmidt", "the vectors are orthonormalised first", Reflect(U, gram_schmidt=True)
        )
    if a.gram_schmidt and U.shape[1] > 1:
        yield _only(a, "hra.not_orthonormal", "Gram-Schmidt is left out", Reflect(U))
    if U.shape[1] > 1:
        yield _only(a, "hra.first_only", "only the first reflection is applied", Reflect(U[:, :1]))
        even = U[:, : U.shape[1] // 2 * 2]
        if even.shape != U.shape:
            sentence = "the last vector of an odd rank is left out"
            yield _only(a, "hra.even_only", sentence, Reflect(even, a.gram_schmidt))
    yield _only(a, "hra.not_normalised", "the vectors are not normalised", _Raw(U))


@dataclass
class _Raw(Update):
    U: Tensor

    def rows(self, W: Tensor, start: int) -> Tensor:
        for u in self.U.mT:
            W = W - 2 * (W @ u)[:, None] * u
        return W


def _delora(a: AdaptedModule) -> Iterator[Reading]:
    for identity, sentence, update in (
        ("delora.no_rank", "λ is not divided by the rank", delora_update(a, divide=False)),
        (
            "delora.frobenius",
            "the norms are those of the whole matrices",
            delora_update(a, norms="frobenius"),
        ),
        ("delora.no_norms", "the factors are not normalised", delora_update(a, norms="none")),
        ("delora.no_w_norm", "‖W‖ of the input channels is left out", delora_update(a, channels=False)),
    ):
        yield _only(a, identity, sentence, update)
    if a.default_alpha:
        sentence = "λ is the configuration's, not the trained one of the file"
        yield _only(a, "delora.config_lambda", sentence, delora_update(a, bound=a.default_alpha))


def _vera(a: AdaptedModule) -> Iterator[Reading]:
    yield _only(a, "vera.no_b", "λ_b is left out", vera_update(a, without="b"))
    yield _only(a, "vera.no_d", "λ_d is left out", vera_update(a, without="d"))
    if "A_last" in a.factors:
        other = vera_update(a, A="A_last", B="B_last")
        yield _only(a, "vera.last_rows", "the shared matrices are cut at the other end", other)


def _replaced(a: AdaptedModule) -> Iterator[Reading]:
    added: Updates = {
        a.named(n): LowRank(v.double().reshape(v.shape[0], -1), torch.eye(v[0].numel()))
        for n, v in a.replaced.items()
    }
    yield Reading("saved.added", "the saved tensor is added to the base's", added)


READINGS: dict[str, tuple[Callable[[AdaptedModule], Iterator[Reading]], ...]] = {
    "lora": (_scaled, _layout, _bias),
    "dora": (_scaled, _layout, _dora),
    "pissa": (_scaled, _pissa),
    "ia3": (_ia3,),
    "hra": (_hra,),
    "delora": (_delora,),
    "vera": (_vera,),
    "replace": (_replaced,),
}
