"""What a check is handed: the subject and one oracle on the same case, and the comparison of the two."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness.cases.layer_cases import Case
from harness.cases.recorded_cases import Recorded
from harness.compare import rounding
from harness.compare.abilities import Abilities, abilities_of
from harness.compare.layer import Layer, SubjectRaised, adapt, answering
from harness.compare.outcome import Described, Deviation, NoSlot, OracleRefused, ToldElsewhere, Unverified
from harness.compare.refusals import is_crash
from harness.compare.rounding import coarser
from harness.compare.thresholds import THRESHOLDS
from oracles.implementation import Adapted, AdapterSpec, Implementation, Unsupported
from oracles.oracle import NotRecorded, Oracle
from oracles.seeding import seed_torch
from oracles.variants import Canonical, Variant, paper

FOLDS_IN = ("merge", "merge_in_place")
State = Literal["initial", "step0", "far"]


class Refused(Exception):
    """The subject will not have this rank on these sizes; asked once, by ``forward.edge_ranks``, not everywhere."""


class CutDown(Refused):
    """The subject has taken a rank above min(in, out) for min(in, out)."""


class Singular(Refused):
    """The values that were drawn lie where the method is not defined: the subject has refused nothing."""


@dataclass
class Worst:
    """The largest ratio seen relative to its threshold, over a claim's examples."""

    ratio: float | None = None
    threshold: float | None = None

    def see(self, ratio: float, threshold: float) -> None:
        """Keep ``ratio`` if it comes closer to its threshold than any before."""
        if (
            self.ratio is None
            or self.threshold is None
            or ratio * max(self.threshold, 1e-300) > self.ratio * max(threshold, 1e-300)
        ):
            self.ratio, self.threshold = ratio, threshold


@dataclass
class Pair:
    """Subject and oracle at the same parameters; ``theirs`` in float64."""

    case: Case
    ours: Layer
    theirs: Layer
    trainable: list[str]
    hidden: Mapping[str, Tensor]  # what the oracle's output depends on besides its slots

    @property
    def point(self) -> rounding.Point:
        """The oracle's float64 point: base, input and the parameters that both hold."""
        return rounding.point(self.case, {**self.hidden, **self.theirs.values()})


@dataclass
class Context:
    """One claim's question: a subject, an oracle, a variant."""

    subject: Implementation
    oracle: Oracle
    variant: Variant
    worst: Worst = field(default_factory=Worst)
    left_out: str = ""  # why the oracle could not be asked of some case
    slack: float = 1.0  # how many times its threshold a difference may be: to see how large one is

    def layer(self, case: Case, seed: int = 0) -> Layer:
        """The subject on a fresh base of ``case``, torch's generator seeded from the case.

        Raises Refused where a right implementation may refuse the rank, or has drawn values near a singularity.
        """
        seed_torch(case.seed + seed)
        try:
            layer = adapt(self.subject, case.base(), case.spec)
        except (SubjectRaised, Unsupported):
            above = case.spec.rank > min(case.in_features, case.out_features) and self.variant.has_rank
            if above or self.variant.may_refuse(case.spec):
                raise Refused from None
            raise
        if self._is_cut_down(layer, case):
            raise CutDown
        if self.variant.is_singular(layer.values(), case.spec):
            raise Singular
        return layer

    def _is_cut_down(self, layer: Layer, case: Case) -> bool:
        """Whether the slots are those of the rank min(in, out), and a higher one was asked for."""
        lowest = min(case.in_features, case.out_features)
        if lowest >= case.spec.rank or not self.variant.has_rank or self.variant.base is not None:
            return False
        spec = dataclasses.replace(case.spec, rank=lowest)
        there = {n: tuple(layer.view(n).shape) for n in layer.names}
        sizes = (case.out_features, case.in_features)
        known = [t for t in self.variant.tensors if t.name in there]
        lower = [tuple(t.shape(*sizes, spec)) for t in known]
        asked = [tuple(t.shape(*sizes, case.spec)) for t in known]
        return asked != lower == [there[t.name] for t in known]

    def reference(self, case: Case) -> Layer:
        """The oracle on a fresh base in the case's own dtype, as a user of it would have it."""
        seed_torch(case.seed)
        with self._oracle_answers():
            return adapt(self.oracle, case.base(), case.spec)

    def evaluator(self, case: Case) -> Layer:
        """The oracle in float64, for evaluation at parameters that are written into it."""
        seed_torch(case.seed)
        with self._oracle_answers(), answering(self.oracle.name, "adapt"):
            return Layer(self.oracle.evaluator(case.base(torch.float64), case.spec), self.oracle.name)

    @contextmanager
    def _oracle_answers(self) -> Iterator[None]:
        """What the oracle does not support leaves the case out; what it raises leaves the claim unverified."""
        try:
            yield
        except NotRecorded:
            raise
        except Unsupported as why:
            self.left_out = str(why)
            raise Refused from why
        except SubjectRaised as error:
            raise OracleRefused(f"the oracle refused: {error}") from error

    @property
    def abilities(self) -> Abilities:
        """What the subject takes at all."""
        return abilities_of(self.subject, self.variant.id)

    @property
    def forward(self) -> paper.Forward:
        """The equation whose conditioning sets the noise: the oracle's form of it."""
        return self.oracle.forms[self.variant.id].forward

    def pair(self, case: Case, state: State) -> Pair:
        """Both layers at the same parameters.

        ``initial``: the subject's own start; ``step0``: the oracle's start, with the subject's random draws;
        ``far``: values far from initialisation. What the subject lacks keeps the oracle's value where that is
        determined, and leaves the claim unverified where it is not.
        """
        ours, theirs = self.layer(case), self.evaluator(case)
        self._share_what_is_missing(case, ours, theirs)
        self._share_the_start(ours, theirs)
        keep = {t.name for t in self.variant.tensors if t.exact} if state == "step0" else set()
        if state == "far" or isinstance(case, Recorded):  # what was recorded is where both have to be
            ours.write(case.far({name: None for name in ours.names if name not in keep}))
        theirs.write({name: ours.value(name) for name in ours.names if name not in keep})
        shared = [n for n in theirs.names if n in ours.names and ours.view(n).shape == theirs.view(n).shape]
        trainable = [n for n in shared if theirs.raw(n).requires_grad]
        return Pair(case, ours, theirs, trainable, self.oracle.hidden(theirs.adapted))

    def _share_the_start(self, ours: Layer, theirs: Layer) -> None:
        """A form that keeps a copy of its start is given the subject's, which is where that one started."""
        hidden = self.oracle.hidden(theirs.adapted)
        for name, slot in self.oracle.forms[self.variant.id].parts["copies"].items():
            held = hidden[name]
            if slot in ours.names and ours.view(slot).shape == held.shape:
                held.copy_(ours.value(slot))

    def _share_what_is_missing(self, case: Case, ours: Layer, theirs: Layer) -> None:
        for tensor in self.variant.tensors:
            if tensor.name not in theirs.names:
                continue
            if tensor.name in ours.names and ours.view(tensor.name).shape == theirs.view(tensor.name).shape:
                continue
            if self.variant.may_refuse(case.spec):
                raise Refused
            left = self.residual(case, ours) if tensor.role == "base" else None
            if left is not None:
                theirs.write({tensor.name: left})
            elif isinstance(case, Recorded) and not self._starts_so(case, tensor, theirs):
                # It was recorded at a value of its own, which cannot be written into another shape, or into none.
                why = f"the subject has no {tensor.name} of the shape in which a value was recorded"
                raise ToldElsewhere(why, "shapes.canonical")
            elif tensor.exact is None:
                raise NoSlot(f"the subject has no slot {tensor.name!r} of the canonical shape", tensor.name)

    def _starts_so(self, case: Case, tensor: Canonical, theirs: Layer) -> bool:
        """Whether the value that was recorded is the one that the weight determines."""
        if tensor.exact is None:
            return True  # no slot for it is another matter
        exact, held = tensor.exact(case.weight.double(), case.spec), theirs.value(tensor.name)
        unit = rounding.roundoff(coarser(case.torch_dtype)) * float(torch.linalg.vector_norm(exact))
        return rounding.ratio(held, exact, unit) <= THRESHOLDS["formula"]

    def residual(self, case: Case, ours: Layer) -> Tensor | None:
        """The base weight (out, in) that the subject's own factors leave, float64; None where it does not show them."""
        factorised = self.variant.factorised
        if factorised is None or not set(factorised.names) <= set(ours.names):
            return None
        values = {name: ours.value(name) for name in factorised.names}
        return factorised.residual(case.weight.double(), values, case.spec)

    def compare(self, pair: Pair, *, gradients: bool = False, only: Iterable[str] | None = None) -> None:
        """Output (and gradients) of both at the pair's point, each within its threshold of rounding noise."""
        actual = rounding.observe(pair.ours, pair.case, gradients=gradients)
        expected = rounding.observe(pair.theirs, double(pair.case), gradients=gradients)
        at, unit = pair.point, rounding.roundoff(coarser(pair.case.torch_dtype))
        noise = functools.cache(lambda: self.noise(pair, gradients=gradients))
        known = self._known_noise(pair)
        for name in [n for n in expected if n in actual and n in known and (only is None or n in only)]:
            floor = unit * rounding.floor(name, expected, at)
            measured = functools.partial(lambda n: noise()[n], name)
            self.judge(pair.case, name, actual[name], expected[name], floor, noise=measured)

    def _known_noise(self, pair: Pair) -> set[str]:
        """The quantities whose noise the equation can tell."""
        return {"output", "gradient of x"} | {
            f"gradient of {n}" for n in pair.trainable if self.variant.tensor(n)
        }

    def noise(
        self, pair: Pair, *, gradients: bool = False, unit: torch.dtype | None = None
    ) -> dict[str, float]:
        """Rounding noise of every quantity at the pair's point, in float32 or the case's coarser dtype."""
        dtype = unit or coarser(pair.case.torch_dtype)
        trainable = [n for n in pair.trainable if self.variant.tensor(n)]

        def at(point: rounding.Point) -> rounding.Quantities:
            return rounding.evaluate(self.forward, point, trainable, gradients)

        return rounding.noise(at, pair.point, dtype, pair.case.generator(7))

    def effective_noise(self, pair: Pair) -> dict[str, float]:
        """Rounding noise of the effective weight and bias at the pair's parameters."""

        def at(point: rounding.Point) -> rounding.Quantities:
            W, b = paper.effective(self.forward, point.W, point.b, point.parameters, point.spec)
            return {"effective weight": W, "effective bias": b}

        with torch.no_grad():
            return rounding.noise(at, pair.point, coarser(pair.case.torch_dtype), pair.case.generator(7))

    def amplification(self, case: Case) -> float:
        """How much more than ``‖x‖ ‖W‖`` roundings the output can feel far from the start; at least one.

        DoRA divides by a row norm that can come near zero; where a slot is missing this cannot be known and is
        taken to be one.
        """
        try:
            pair = self.pair(case, "far")
        except Unverified:
            return 1.0
        operands = float(torch.linalg.vector_norm(case.x.double())) * float(
            torch.linalg.matrix_norm(case.weight.double())
        )
        if operands == 0:
            return 1.0
        return max(
            1.0, self.noise(pair)["output"] / (rounding.roundoff(coarser(case.torch_dtype)) * operands)
        )

    def judge(
        self,
        case: Described,
        name: str,
        actual: Tensor,
        exact: Tensor,
        floor: float,
        kind: str = "formula",
        *,
        noise: Callable[[], float] | None = None,
    ) -> None:
        """Raise Deviation where ``actual`` is further from ``exact`` than the threshold of ``kind`` allows.

        ``floor`` is a cheap lower bound of the noise; ``noise`` measures it, and is asked only when the error is
        above the floor: a ratio of at most one may be an overestimate.
        """
        if not bool(torch.isfinite(exact).all()):
            raise OracleRefused("what it would be compared with is NaN or infinite here")
        threshold = THRESHOLDS[kind] * self.slack
        ratio = rounding.ratio(actual, exact, floor)
        if ratio > 1 and noise is not None:
            ratio = rounding.ratio(actual, exact, max(floor, noise()))
        self.worst.see(ratio, threshold)
        if ratio > threshold:
            expected, got = where_worst(actual, exact)
            raise Deviation(case, name, expected, got, ratio=ratio, threshold=threshold)

    def demand(
        self, held: bool, case: Described | None, quantity: str, expected: Any, actual: Any, note: str = ""
    ) -> None:
        """Raise Deviation unless ``held``: for facts that are not numbers."""
        if not held:
            raise Deviation(case, quantity, str(expected), str(actual), note=note)

    def calling(self, what: str, call: Callable[..., Any], *args: Any) -> Any:
        """A method of the subject, its exceptions turned into findings.

        What folds an adapter in may be refused in a sentence to a layer in training mode: it is asked in evaluation
        mode then, in which a layer that is folded in place stays.
        """
        try:
            with answering(self.subject.name, what):
                return call(*args)
        except SubjectRaised as error:
            folds = what in FOLDS_IN and not is_crash(error)
            module = args[0].module if folds and isinstance(args[0], Adapted) else None
            if module is None or not module.training:
                raise
            return self._in_evaluation(what, module, error, functools.partial(call, *args))

    def _in_evaluation(
        self, what: str, module: nn.Module, error: SubjectRaised, call: Callable[[], Any]
    ) -> Any:
        module.train(False)
        try:
            with answering(self.subject.name, what):
                answer = call()
        except SubjectRaised:
            module.train()
            raise error from error.__cause__
        if what == "merge":
            module.train()
        return answer


def double(case: Case) -> Case:
    """The same case whose tensors are the float64 values of its rounded ones."""
    wide = case.but(dtype="float64")
    # cached_property: the rounded values are put in place of freshly drawn ones.
    vars(wide).update(
        weight=case.weight.double(),
        bias_vector=None if case.bias_vector is None else case.bias_vector.double(),
        input=case.x.double(),
        cotangent=case.cotangent.double(),
    )
    return wide


def where_worst(actual: Tensor, exact: Tensor) -> tuple[str, str]:
    """The entry that is furthest off, as two short texts."""
    if actual.shape != exact.shape:
        return f"shape {tuple(exact.shape)}", f"shape {tuple(actual.shape)}"
    if actual.numel() == 0:
        return "empty", "empty"
    gap = (actual - exact).abs().nan_to_num(nan=float("inf")).flatten()
    worst = int(gap.argmax())
    at = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), actual.shape))
    index = "[" + ", ".join(map(str, at)) + "]" if actual.dim() else ""
    wanted, got = float(exact.flatten()[worst]), float(actual.flatten()[worst])
    digits = 6 if f"{wanted:.6g}" != f"{got:.6g}" else 12
    return f"{wanted:.{digits}g} at {index}", f"{got:.{digits}g}"


def plain(base: nn.Linear, x: Tensor) -> Tensor:
    """The base layer's own output, float64, without autograd."""
    with torch.no_grad():
        return base(x).double()


def spec_of(spec: AdapterSpec) -> str:
    """A spec in a few words, for messages."""
    return f"{spec.variant}, rank {spec.rank}, alpha {spec.alpha:g}"
