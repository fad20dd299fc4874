"""Is this tensor the base's with this update? One pass over its rows, a second one to say what it is instead."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from harness.checkpoints.rounding_replay import SINGLE, Dtypes, arithmetic, bound, is_additive, replays, ulp
from oracles.vectors.update import Replace, Residual, Unchanged, Update

Rows = Callable[[], Iterator[tuple[int, Tensor, Tensor]]]  # first row, the base's rows, the merged ones

VERIFIED = "verified"
NOT_APPLIED = "not applied"
TWICE = "applied twice"
SCALE = "wrong scale"
TRANSPOSED = "transposed"
MISREAD = "misread"
OTHER = "another adapter"
REQUANTISED = "requantised away"
INCONCLUSIVE = "inconclusive"
CHANGED = "changed"
MISSING = "missing"
WRONG = (NOT_APPLIED, TWICE, SCALE, TRANSPOSED, MISREAD, OTHER, REQUANTISED, CHANGED, MISSING)

SURE = 6.0  # standard errors
RESOLUTION = 0.02  # of the scale: where rounding hides more than this, the bits have to decide
STRAY = 1e-3  # share of entries whose bits may differ in a replay: float32 products are summed in any order
GRID = 64  # consecutive entries that share a scale in a quantised tensor
LEVELS = {16: "4-bit", 256: "8-bit"}


def dot(a: Tensor, b: Tensor) -> float:
    """The sum of the products of all entries."""
    return float(a.flatten() @ b.flatten())


def beyond(W: Tensor, M: Tensor, H: Tensor, dtypes: Dtypes, update: Update) -> int:
    """How many entries of M lie further from H than rounding can take them."""
    return int(torch.count_nonzero(~((M.double() - H).abs() <= bound(W, H, dtypes, update))))


@dataclass(frozen=True)
class Judgement:
    """One tensor's verdict, the sentence behind it, and the numbers behind the sentence."""

    tensor: str
    verdict: str
    reason: str
    size: float = 0.0  # ‖ΔW‖ / ‖W‖
    found: float = math.nan  # the share of ΔW that the merged tensor holds; one is right
    residual: float = math.nan  # what is left of the change, in units of ‖ΔW‖


@dataclass
class Tally:
    """What one hypothesis H leaves unexplained, over all rows."""

    squares: float = 0.0  # ‖M - H‖²
    beyond: int = 0  # entries further off than rounding can be
    apart: float = 0.0  # ‖H - R‖² from the right tensor R
    differing: dict[str, int] = field(default_factory=dict)  # by order of rounding: entries with other bits

    def see(self, W: Tensor, M: Tensor, H: Tensor, dtypes: Dtypes, update: Update, at: int) -> None:
        """A block of rows from row ``at`` on: W and H = update(W) float64, M as it is stored."""
        gap = M.double() - H
        self.squares += dot(gap, gap)
        self.beyond += beyond(W, M, H, dtypes, update)
        between = update.residual(W, at) if isinstance(update, Residual) else None
        for order, bits in replays(W, H, dtypes, between).items():
            self.differing[order] = self.differing.get(order, 0) + int(torch.count_nonzero(bits != M))

    @property
    def bits(self) -> int:
        """Differing entries in the order that fits best."""
        return min(self.differing.values(), default=0)

    def holds(self, entries: int) -> bool:
        """Whether the tensor is this one, up to rounding."""
        return self.beyond == 0 or self.same_bits(entries)

    def same_bits(self, entries: int) -> bool:
        """Whether some order of rounding gives the very bits, a few strays apart."""
        return self.bits <= STRAY * entries


@dataclass
class Moments:
    """Sums over all entries: of the update D, the change C = M - W, and what rounding leaves of the update, P."""

    entries: int = 0
    DD: float = 0.0
    CC: float = 0.0
    CP: float = 0.0
    PP: float = 0.0
    WW: float = 0.0
    noise: float = 0.0
    grain: float = 0.0  # the variance of the rounding of M itself
    finite: bool = True
    defined: bool = True  # whether the update itself is a number everywhere

    def see(self, W: Tensor, M: Tensor, right: Tensor, dtypes: Dtypes) -> None:
        """A block of rows."""
        D, C = right - W, M.double() - W
        P = right.to(dtypes.merged).double() - W
        DD, CC = dot(D, D), dot(C, C)
        self.entries += W.numel()
        self.DD, self.CC, self.WW = self.DD + DD, self.CC + CC, self.WW + dot(W, W)
        self.CP, self.PP = self.CP + dot(C, P), self.PP + dot(P, P)
        fine, found = ulp(right, dtypes.merged), ulp(M.double(), dtypes.merged)
        coarse = fine if dtypes.base == dtypes.merged else ulp(right, dtypes.base)
        self.noise += (dot(fine, fine) + dot(coarse, coarse) / 4) / 12
        self.grain += dot(found, found) / 12
        self.finite = self.finite and (math.isfinite(CC) or bool(torch.isfinite(C).all()))
        self.defined = self.defined and (math.isfinite(DD) or bool(torch.isfinite(D).all()))

    @property
    def factor(self) -> float:
        """The share of the update, as far as it outlasts rounding, that the change holds: <C, P> / ‖P‖²."""
        return self.CP / self.PP if self.PP else 0.0

    @property
    def residual(self) -> float:
        """What is left of the change, ‖C - factor P‖ / ‖D‖."""
        if not self.DD:
            return math.nan
        explained = self.CP**2 / self.PP if self.PP else 0.0
        return math.sqrt(max(self.CC - explained, 0.0) / self.DD)

    @property
    def blur(self) -> float:
        """Standard error of the factor, from rounding alone."""
        each = math.sqrt(self.noise / max(self.entries, 1))
        return each / math.sqrt(self.DD) if self.DD else math.inf

    @property
    def rounding(self) -> float:
        """The residual that rounding alone leaves, in units of ‖D‖."""
        return math.sqrt(self.noise / self.DD) if self.DD else math.inf


@dataclass(frozen=True)
class Question:
    """A tensor, what should have been done to it, and what else could have been."""

    tensor: str
    right: Update
    wrong: Mapping[str, tuple[str, Update]]  # id -> sentence and update
    dtypes: Dtypes
    rows: Rows


def judge(question: Question) -> Judgement:
    """The verdict on one tensor."""
    moments, right, kept = _first_pass(question)
    if not moments.defined:
        return Judgement(
            question.tensor, INCONCLUSIVE, "the adapter's own update is not finite: vectors that cancel"
        )
    if not moments.finite:
        return Judgement(question.tensor, OTHER, "the merged tensor holds values that are not finite")
    if moments.DD == 0:
        return _nothing_to_do(question, right, moments)
    numbers = _numbers(moments)
    if right.holds(moments.entries) and _settled(question, moments, right, kept):
        return Judgement(question.tensor, VERIFIED, _how(moments, right), **numbers)
    return _otherwise(question, moments, right, numbers)


def _numbers(moments: Moments) -> dict[str, float]:
    size = math.sqrt(moments.DD / moments.WW) if moments.WW else math.inf
    return {"size": size, "found": moments.factor, "residual": moments.residual}


def _first_pass(question: Question) -> tuple[Moments, Tally, bool]:
    """The sums, what the right reading leaves unexplained, and whether the tensor may be the base's up to rounding."""
    moments, right, kept = Moments(), Tally(), True
    question.right.prepare(lambda: ((at, W.double()) for at, W, _ in question.rows()))
    for at, base, M in question.rows():
        W = base.double()
        H = question.right.rows(W, at)
        moments.see(W, M, H, question.dtypes)
        right.see(W, M, H, question.dtypes, question.right, at)
        kept = kept and not beyond(W, M, W, question.dtypes, Unchanged())
    return moments, right, kept


def _nothing_to_do(question: Question, right: Tally, moments: Moments) -> Judgement:
    if right.holds(moments.entries):
        return Judgement(question.tensor, VERIFIED, "the update is zero, and the tensor is the base's")
    return Judgement(question.tensor, OTHER, "the update is zero, and the tensor is not the base's")


def _settled(question: Question, moments: Moments, right: Tally, kept: bool) -> bool:
    """Whether being within rounding of the right tensor excludes being another one."""
    if isinstance(question.right, Replace):
        return right.same_bits(moments.entries)
    sharp = (
        _measurable(moments)
        and _shift(question, moments) < 0.25
        and SURE * moments.blur < RESOLUTION
        and not kept
    )
    return sharp and right.beyond == 0 and _whole(question, moments)


def _measurable(moments: Moments) -> bool:
    """Whether the update stands out of the rounding, so that a share of it can be told from the change."""
    return moments.rounding < 0.3


def _shift(question: Question, moments: Moments) -> float:
    """What roundings of W on the way (norms, products of factors) can do to the share: they shift entries together."""
    return arithmetic(question.right, question.dtypes) * math.sqrt(moments.WW / moments.DD)


def _whole(question: Question, moments: Moments) -> bool:
    """Whether the change holds the update once, as far as rounding lets one see."""
    if not _measurable(moments):
        return True
    plain = is_additive(question.right) and torch.finfo(question.dtypes.adapter).eps <= SINGLE
    free = max(_shift(question, moments), 1e-3 if plain else 1e-2)
    return abs(moments.factor - 1) < max(SURE * moments.blur, free)


def _replayable(question: Question) -> bool:
    """Whether a right merge's bits can be told: no product was formed in a dtype too coarse for its order to matter."""
    coarse = torch.finfo(question.dtypes.adapter).eps > SINGLE
    return not (coarse and not is_additive(question.right)) and not isinstance(question.right, Residual)


def _how(moments: Moments, right: Tally) -> str:
    if right.same_bits(moments.entries) and right.bits == 0:
        return "bit for bit"
    return f"within rounding, {moments.factor:.4g} of the update"


def _otherwise(question: Question, moments: Moments, right: Tally, numbers: dict[str, float]) -> Judgement:
    """Which of all readings is it?"""
    tallies = (
        {"": right, **_second_pass(question, moments)}
        if _whole(question, moments)
        else (_second_pass(question, moments))
    )
    holding = [name for name, tally in tallies.items() if tally.holds(moments.entries)]
    bitwise = [name for name in holding if tallies[name].same_bits(moments.entries)]
    chosen = bitwise or holding
    if "" in holding and not _replayable(question):
        chosen = holding
    words = {name: sentence for name, (sentence, _) in question.wrong.items()}
    if not chosen:
        return _unexplained(question, moments, numbers)
    if "" in chosen and len(chosen) > 1:
        return _below_rounding(question, tallies, chosen, words, numbers, moments)
    if "" in chosen:
        return Judgement(question.tensor, VERIFIED, _replayed(tallies[""]), **numbers)
    best = min(chosen, key=lambda name: tallies[name].squares)
    same = [n for n in chosen if tallies[n].squares <= tallies[best].squares * (1 + 1e-9)]
    same.sort(key=lambda name: (name != "not_applied", name != best))
    return Judgement(question.tensor, verdict_of(same[0]), ", or ".join(words[n] for n in same), **numbers)


def _replayed(tally: Tally) -> str:
    order = min(tally.differing, key=lambda name: tally.differing[name])
    return (
        f"the update is below the rounding; its replay ({order}) gives these bits, and no other reading does"
    )


def _below_rounding(
    question: Question,
    tallies: Mapping[str, Tally],
    chosen: Sequence[str],
    words: Mapping[str, str],
    numbers: dict[str, float],
    moments: Moments,
) -> Judgement:
    """The right one and others leave the same bits, or all lie within rounding."""
    fewest = min(tallies[name].bits for name in chosen)
    exact = [name for name in chosen if tallies[name].bits == fewest]
    if exact == [""] and tallies[""].same_bits(moments.entries):
        return Judgement(question.tensor, VERIFIED, _replayed(tallies[""]), **numbers)
    others = [words[name] for name in chosen if name]
    if "not_applied" in exact and "" in exact and _lost_in_storage(question):
        kind = str(question.dtypes.merged).removeprefix("torch.")
        reason = f"the update is below what {kind} holds; in the base's dtype it would not have been lost"
        return Judgement(question.tensor, REQUANTISED, reason, **numbers)
    return Judgement(
        question.tensor, INCONCLUSIVE, f"the update is below the rounding: as well {others[0]}", **numbers
    )


def _lost_in_storage(question: Question) -> bool:
    """Whether the base's dtype would have shown the update that the merged tensor's does not."""
    if question.dtypes.base == question.dtypes.merged:
        return False
    finer = Dtypes(question.dtypes.base, question.dtypes.adapter, question.dtypes.base)
    for at, base, _ in question.rows():
        W = base.double()
        if not torch.equal(question.right.rows(W, at).to(finer.merged), W.to(finer.merged)):
            return True
    return False


def _second_pass(question: Question, moments: Moments) -> dict[str, Tally]:
    """Every wrong reading that is not the right one at this module's numbers, over all rows."""
    tallies = {name: Tally() for name in question.wrong}
    for _, update in question.wrong.values():
        update.prepare(lambda: ((at, W.double()) for at, W, _ in question.rows()))
    for at, base, M in question.rows():
        W = base.double()
        right = question.right.rows(W, at)
        for name, (_, update) in question.wrong.items():
            H = update.rows(W, at)
            tallies[name].see(W, M, H, question.dtypes, update, at)
            tallies[name].apart += float((H - right).square().sum())
    return {name: tally for name, tally in tallies.items() if tally.apart > 1e-12 * moments.DD}


def _unexplained(question: Question, moments: Moments, numbers: dict[str, float]) -> Judgement:
    """No named reading: another share of the update, a coarse grid, or something else altogether."""
    share, left = moments.factor, moments.residual
    factors = torch.finfo(question.dtypes.adapter).eps
    near = left < 3 * math.sqrt(max(moments.noise, moments.grain) / moments.DD) + 4 * factors + 1e-4
    if _measurable(moments) and near and abs(share) > SURE * moments.blur:
        reason = f"the tensor holds {share:.4g} times the update"
        return Judgement(question.tensor, SCALE, reason, **numbers)
    levels = _grid(question)
    if levels:
        return _on_a_grid(question, moments, levels, numbers)
    reason = (
        f"the change is no multiple of the update: {share:.3g} times it, and {left:.3g} of its size beside it"
    )
    return Judgement(question.tensor, OTHER, reason, **numbers)


def _grid(question: Question) -> int:
    """16 or 256 where runs of consecutive entries take no more values than such a quantisation has; else 0."""
    _, base, M = next(iter(question.rows()))
    if _values(M, GRID) <= 16 < _values(base, GRID):
        return 16
    long = min(M.shape[1], 4096)
    return 256 if long >= 1024 and _values(M, long) <= 256 < _values(base, long) else 0


def _values(tensor: Tensor, length: int) -> int:
    """The most values that any of the first runs of ``length`` consecutive entries takes."""
    flat = tensor.double().flatten()
    runs = flat[: len(flat) // length * length].reshape(-1, length)[:512]
    return max((int(run.unique().numel()) for run in runs), default=0)


def _on_a_grid(question: Question, moments: Moments, levels: int, numbers: dict[str, float]) -> Judgement:
    """The tensor was quantised on the way: does the grid still hold the update?"""
    error = moments.residual / math.sqrt(moments.entries)  # of the share, with the grid's errors as the noise
    share, kind = moments.factor, LEVELS[levels]
    if abs(share - 1) < SURE * error < 0.5:
        reason = f"on a {kind} grid, {share:.3g} ± {error:.1g} of the update"
        return Judgement(question.tensor, VERIFIED, reason, **numbers)
    if abs(share) < SURE * error < 0.5:
        reason = f"the tensor lies on a {kind} grid and holds {share:.2g} ± {error:.1g} of the update"
        return Judgement(question.tensor, REQUANTISED, reason, **numbers)
    if SURE * error >= 0.5:
        reason = f"the tensor lies on a {kind} grid that hides the update"
        return Judgement(question.tensor, INCONCLUSIVE, reason, **numbers)
    reason = f"on a {kind} grid, {share:.3g} ± {error:.1g} of the update"
    return Judgement(question.tensor, SCALE, reason, **numbers)


def verdict_of(reading: str) -> str:
    """The verdict that a wrong reading of this id means."""
    named = {"not_applied": NOT_APPLIED, "applied_twice": TWICE, "layout.transposed": TRANSPOSED}
    if reading in named:
        return named[reading]
    return SCALE if reading.startswith(("scale.", "pattern.", "subtracted")) else MISREAD
