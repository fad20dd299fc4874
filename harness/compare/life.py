"""One adapted layer taken through a sequence of calls, and the float64 model of it beside it.

What the contract leaves open is kept open: a :class:`State` is one right reading of what has been called so far, and
what the layer answers rules readings out. Where none is left, the subject deviates.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.cases.layer_cases import DTYPES
from harness.cases.life_cases import FIRST, WRONGLY, LifeCase, Step, called
from harness.compare import life_faults, rounding
from harness.compare.context import Context, where_worst
from harness.compare.layer import Layer, SubjectRaised, answering, as_layer, said
from harness.compare.life_model import Held, State, Weights, apply, completed, compositions, left_by
from harness.compare.offered import offers
from harness.compare.outcome import Deviation, NoSlot, ToldElsewhere
from harness.compare.refusals import is_crash
from harness.compare.saving import AT_LOAD
from harness.compare.thresholds import THRESHOLDS
from harness.compare.unmerging import leaves_a_rest
from oracles.implementation import Adapted, Unsupported
from oracles.seeding import seed_torch
from reports.model import Diagnosis

Values = dict[str, Tensor]
PERTURBATIONS = 3
LEARNING_RATE = 0.01
# Steps that are no method of the interface, or are made of two.
MADE_OF: dict[str, tuple[str, ...]] = {
    "save_and_load": ("save", "load"),
    **dict.fromkeys(("training_step", "train", "eval", "deepcopy", "cast", "wrongly"), ()),
}
SWITCHES = ("add_adapter", "set_adapters", "delete_adapter")


@dataclass
class Done:
    """A step that was taken; what was there before it, and what it gave.

    ``values``, ``trained`` and ``output`` are looked at before the steps that a check watches.
    """

    step: Step
    held: dict[str, Held]
    states: list[State]
    merged: bool
    values: dict[str, Values] = field(default_factory=dict)
    trained: frozenset[tuple[str, str]] = frozenset()
    output: Tensor = field(default_factory=lambda: torch.zeros(0))
    answer: Any = None
    path: Path | None = None  # what was written to, where the step saves
    gradients: dict[str, Values] = field(default_factory=dict)
    refused: bool = False

    @property
    def name(self) -> str:
        """The step's method."""
        return self.step[0]

    @property
    def after(self) -> str:
        """For a sentence: "after set_adapters(b)"."""
        return f"after {called(self.step)}"


class Life:
    """A subject's layer, its adapters' handles, and what they should compute."""

    def __init__(
        self, context: Context, case: LifeCase, folder: Callable[[], Path], watched: Collection[str] = ()
    ) -> None:
        self.context, self.case, self.folder, self.watched = context, case, folder, watched
        self._weights: dict[tuple[object, ...], Weights] = {}
        self._kept: list[Held] = []  # whose ids are keys above
        self.dtype = case.torch_dtype
        self.handles: dict[str, Layer] = {}
        self.held: dict[str, Held] = {}
        self.left: dict[str, Values] = {}
        self.gone: dict[str, Held] = {}
        self.files = 0
        self.taken: list[Step] = []
        self.merged = self.unsettled = self.ended = self.exported = False
        self.folded: tuple[str, ...] = ()
        self._start(FIRST, context.layer(case))
        self.states = [State((FIRST,), c) for c in compositions(case.spec.variant)]

    # The adapters and their values

    def _start(self, name: str, handle: Layer, *, far: bool = True) -> None:
        """Take a fresh adapter in, and move it far from its start."""
        spec, start = self.case.spec_of(name), handle.values()
        self.left[name] = left_by(self.case.weight.double(), start, spec)
        self.handles[name] = handle
        if far:
            handle.write(self.case.far_for(name))
        self._read(name)

    def _read(self, name: str) -> None:
        spec, known = self.case.spec_of(name), {**self.handles[name].values(), **self.left[name]}
        try:
            values = completed(known, self.case.weight.double(), spec)
        except NoSlot as lacking:
            raise _told_of(lacking.detail or "") from None
        for tensor in self.case.variant.tensors:
            wanted = tensor.shape(self.case.out_features, self.case.in_features, spec)
            if tensor.role == "parameter" and tuple(values[tensor.name].shape) != wanted:
                if any(o.mode and o.of(spec) for o in self.case.variant.options):
                    raise ToldElsewhere("the mode is ignored, which shapes.modes reports", "shapes.modes")
                raise _told_of(tensor.name)
        self.held[name] = Held(spec, values)
        self._kept.append(self.held[name])

    def values(self) -> dict[str, Values]:
        """Every adapter's slots as they are now, but for the base weight that some have among them."""
        own = {t.name for t in self.case.variant.tensors if t.role == "base"}
        return {
            name: {n: handle.value(n) for n in handle.names if n not in own}
            for name, handle in self.handles.items()
        }

    def trained(self) -> frozenset[tuple[str, str]]:
        """(adapter, tensor) of every slot that wants a gradient."""
        return frozenset(
            (name, n) for name, h in self.handles.items() for n in h.names if h.raw(n).requires_grad
        )

    @property
    def layer(self) -> Layer:
        """A handle whose adapter is still there; they all lead to the same layer."""
        return next(iter(self.handles.values()))

    @property
    def module(self) -> nn.Module:
        """The layer."""
        return self.layer.module

    @property
    def active(self) -> tuple[str, ...]:
        """Those that are active in the likeliest reading."""
        return self.states[0].active

    @cached_property
    def base(self) -> Weights:
        """The base layer's weight and bias in float64."""
        b = self.case.bias_vector
        return self.case.weight.double(), None if b is None else b.double()

    # What it computes

    def output(self, x: Tensor | None = None, layer: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """What the layer answers now, float64."""
        call, given = layer or self.layer, (self.case.x if x is None else x).to(self.dtype)
        asked = call if isinstance(call, Layer) else self.layer
        try:
            return self._answer(call, given)
        except SubjectRaised as error:
            if not self.is_refusal(error) or not asked.module.training:
                raise
        asked.train(False)  # a right library may refuse to train a layer that is merged
        try:
            return self._answer(call, given)
        finally:
            asked.train()

    def _answer(self, call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        with torch.no_grad(), answering(self.layer.who, "module(x)"):
            return call(x).double()

    def weights(self, state: State) -> Weights:
        """(W', b') by the model."""
        key = (state, tuple(id(self.held[name]) for name in state.active))
        if key not in self._weights:
            self._weights[key] = state.composed(self.base, [self.held[name] for name in state.active])
        return self._weights[key]

    def noise(self, state: State) -> float:
        """What rounding in the case's dtype may do to the output: measured by perturbing all that goes in."""
        unit, generator = rounding.roundoff(rounding.coarser(self.case.torch_dtype)), self.case.generator(7)

        def shake(t: Tensor) -> Tensor:
            return rounding.shaken(t, unit, generator)

        x, (W, b) = self.case.x.double(), self.base
        exact, total = apply(self.weights(state), x), 0.0
        for _ in range(PERTURBATIONS):
            near = [
                Held(h.spec, {n: shake(v) for n, v in h.values.items()})
                for h in (self.held[name] for name in state.active)
            ]
            moved = state.composed((shake(W), None if b is None else shake(b)), near)
            total += float((apply(moved, shake(x)) - exact).square().sum())
        return (total / PERTURBATIONS) ** 0.5

    def floor(self, state: State) -> float:
        """A cheap lower bound of the noise: one rounding of what is added up."""
        unit = rounding.roundoff(rounding.coarser(self.case.torch_dtype))
        x, (W, b) = float(torch.linalg.vector_norm(self.case.x.double())), self.weights(state)
        size = float(torch.linalg.matrix_norm(W)) + float(torch.linalg.matrix_norm(self.base[0]))
        shift = 0.0 if b is None else float(torch.linalg.vector_norm(b))
        return unit * (x * size + shift)

    def _ratio(self, actual: Tensor, state: State, roundoffs: float) -> float:
        exact, floor = apply(self.weights(state), self.case.x.double()), roundoffs * self.floor(state)
        found = rounding.ratio(actual, exact, floor)
        return (
            found if found <= 1 else rounding.ratio(actual, exact, max(floor, roundoffs * self.noise(state)))
        )

    def judge(
        self, quantity: str, actual: Tensor, states: list[State] | None = None, roundoffs: float = 1.0
    ) -> None:
        """Raise Deviation unless ``actual`` is what some reading computes; the others are given up."""
        threshold = THRESHOLDS["formula"]
        told = self.states if states is None else states
        ratios = [self._ratio(actual, state, roundoffs) for state in told]
        self.context.worst.see(min(ratios), threshold)
        fitting = [state for state, ratio in zip(told, ratios, strict=True) if ratio <= threshold]
        if not fitting:
            raise self.deviation(quantity, actual, told[0], min(ratios))
        if states is None:
            self.states = fitting

    def deviation(self, quantity: str, actual: Tensor, state: State, ratio: float) -> Deviation:
        """What to say of an output that no reading gives, with the fault that gives it, if one does."""
        expected, got = where_worst(actual, apply(self.weights(state), self.case.x.double()))

        def is_it(other: Weights) -> bool:
            near = rounding.ratio(
                actual, apply(other, self.case.x.double()), max(self.floor(state), self.noise(state))
            )
            return near <= THRESHOLDS["formula"]

        fault = life_faults.explain(self, state, is_it)
        return Deviation(
            self.case,
            quantity,
            expected,
            got,
            ratio=ratio,
            threshold=THRESHOLDS["formula"],
            diagnosis=fault or self.of_unmerging(),
            alone=fault is not None and self._is_of_a_life(fault) and not is_it(self.base),
            otherwise=life_faults.SWITCHED_MERGED if self.unsettled else None,
        )

    def _is_of_a_life(self, fault: Diagnosis) -> bool:
        """Whether a fault whose very output is seen is due to what was done, and to nothing else that is wrong."""
        done = self.folded or self.gone or len(self.handles) > 1
        return bool(done) and fault.mistake not in life_faults.OF_THE_FUNCTION

    def of_unmerging(self) -> Diagnosis | None:
        """The name of what goes wrong wherever something was folded in, if it is unmerging that does."""
        rest = self.folded and leaves_a_rest(self.context, self.case)
        return life_faults.UNMERGED_OTHERWISE if rest else None

    # The steps

    def run(self) -> Iterator[Done]:
        """Take the case's steps; those that make no sense where they stand, or are not offered, are passed over."""
        for step in self.case.steps:
            if self.ended:
                return
            if (done := self.take(step)) is not None:
                yield done

    def take(self, step: Step) -> Done | None:
        """Take one step; None where it was passed over."""
        methods = MADE_OF.get(step[0], (step[0],))
        if not all(offers(self.context.subject, self.case.spec, method) for method in methods):
            return None
        self._settle()
        if not self._makes_sense(step):
            return None
        done = self._as_it_is(step)
        try:
            getattr(self, f"_{step[0]}")(done, *step[1:])
        except Unsupported:
            return None
        except SubjectRaised as error:
            if not self.is_refusal(error) or step[0] not in (*SWITCHES, "merge", "save_and_load"):
                self.taken.append(step)  # it is the one that is told of
                raise
            done.refused = True
        self.taken.append(step)
        return done

    def is_refusal(self, error: SubjectRaised) -> bool:
        """Whether a merged layer says in the library's own words that it has to be unmerged first, which is right."""
        return self.merged and not is_crash(error)

    @contextmanager
    def may_ask_to_be_unmerged(self) -> Iterator[None]:
        """What is asked inside may be refused so."""
        try:
            yield
        except SubjectRaised as error:
            if not self.is_refusal(error):
                raise

    def _as_it_is(self, step: Step) -> Done:
        done = Done(step, dict(self.held), list(self.states), self.merged)
        if step[0] in self.watched:
            done.values, done.trained, done.output = self.values(), self.trained(), self.output()
        return done

    def _settle(self) -> None:
        """After a switch while merged, whether it is still folded in is not said: have it unfolded."""
        if self.unsettled:
            with suppress(SubjectRaised, Unsupported):  # nothing may be folded in any more; or it is for good
                self._call("unmerge", self.layer.adapted)
            self.unsettled = self.merged = False

    def _makes_sense(self, step: Step) -> bool:
        name, given = step[0], step[1:]
        if name == "wrongly":
            return True
        if name == "add_adapter":
            return given[0] not in self.handles
        if not set(given) <= self.handles.keys():
            return False
        if name == "delete_adapter":
            return len(self.handles) > 1
        if name in ("merge", "merge_in_place"):
            return bool(self.active) and not (self.merged and name == "merge_in_place")
        if name == "unmerge":
            return self.merged
        return name != "training_step" or (
            bool(self.active) and not self.merged and not self._trains_further()
        )

    def _trains_further(self) -> bool:
        """Whether an adapter learns a tensor that its method does not have, of which the model knows nothing."""
        known = {t.name for t in self.case.variant.tensors}
        return any(n not in known for _, n in self.trained())

    def _call(self, method: str, *arguments: Any) -> Any:
        return self.context.calling(method, getattr(self.context.subject, method), *arguments)

    def _add_adapter(self, done: Done, name: str) -> None:
        seed_torch(self.case.seed + len(self.handles))
        found = self._call("add_adapter", self.layer.adapted, name, self.case.spec_of(name))
        done.answer = as_layer(found, self.context.subject, "add_adapter")
        self._start(name, done.answer)

    def _set_adapters(self, done: Done, *names: str) -> None:
        ordered = tuple(name for name in self.handles if name in names)  # as added: every library's order
        self._call("set_adapters", self.layer.adapted, ordered)
        self.states = [State(ordered, c) for c in dict.fromkeys(s.composed for s in self.states)]
        self.unsettled = self.merged

    def _delete_adapter(self, done: Done, name: str) -> None:
        other = next(handle for own, handle in self.handles.items() if own != name)
        self._call("delete_adapter", other.adapted, name)
        del self.handles[name]
        self.gone[name] = self.held.pop(name)
        # Who acts when the only active one is gone is not said: nobody, or one of those that are left.
        orphaned = [s.composed for s in self.states if s.active == (name,)]
        heirs = [State((n,), composed) for composed in orphaned for n in self.handles]
        self.states = [self._without(state, name) for state in self.states] + heirs
        self.unsettled = self.merged

    def _without(self, state: State, name: str) -> State:
        return State(tuple(n for n in state.active if n != name), state.composed)

    def _merge_in_place(self, done: Done) -> None:
        self._call("merge_in_place", self.layer.adapted)
        self.merged, self.folded = True, self.active

    def _unmerge(self, done: Done) -> None:
        self._call("unmerge", self.layer.adapted)
        self.merged = False

    def _wrongly(self, done: Done, method: str, name: str, how: str) -> None:
        """A call that should be refused; where it is not, what the layer then is, is not said."""
        given: tuple[Any, ...] = {
            "set_adapters": ((name,),),
            "delete_adapter": (name,),
            "add_adapter": (name, dataclasses.replace(self.case.spec, **WRONGLY[how])),
        }[method]
        try:
            self._call(method, self.layer.adapted, *given)
        except (SubjectRaised, Unsupported):
            done.refused = True
        else:
            self.ended = True

    def _merge(self, done: Done) -> None:
        done.answer = self._call("merge", self.layer.adapted)
        self.exported = True

    def _train(self, done: Done) -> None:
        self.layer.train(True)

    def _eval(self, done: Done) -> None:
        self.layer.train(False)

    def _training_step(self, done: Done) -> None:
        """One step of SGD on whatever of the layer wants a gradient, in training mode."""
        self.layer.train(True)
        for handle in self.handles.values():
            handle.clear_gradients()
        x = self.case.x.to(self.dtype)
        y = rounding.of_the_layers_shape(self.layer, self.case, self.layer(x), x)
        if y.requires_grad:
            with answering(self.layer.who, "the backward pass"):
                y.backward(self.case.cotangent.to(y.dtype))
        done.gradients = {
            name: {n: handle.gradient(n) for n in handle.names if n in self.case.far_for(name)}
            for name, handle in self.handles.items()
        }
        trained = [p for p in self.module.parameters() if p.requires_grad]
        torch.optim.SGD(trained or [nn.Parameter(torch.zeros(()))], lr=LEARNING_RATE).step()
        for name, handle in self.handles.items():
            handle.clear_gradients()
            self._read(name)

    def _save_and_load(self, done: Done, name: str) -> None:
        """Save one adapter and load it on a fresh base; the answer is the loaded layer."""
        self.files += 1
        path = self.folder() / f"{self.files}" / "adapter"
        path.parent.mkdir()
        done.path = path
        self._call("save", self.handles[name].adapted, path)
        seed_torch(self.case.seed + AT_LOAD)
        found = self._call("load", self.case.base(), self.case.spec_of(name), path)
        done.answer = as_layer(found, self.context.subject, "load")

    def _deepcopy(self, done: Done) -> None:
        try:
            copied = copy.deepcopy(self.module)
        except Exception as error:
            self.ended = done.refused = True
            done.answer = f"{type(error).__name__}: {said(error)}"
            return
        done.answer = Layer(Adapted(copied, {}), self.context.subject.name)

    def _cast(self, done: Done) -> None:
        """To float64, which changes no value."""
        try:
            with answering(self.layer.who, "module.to(torch.float64)"):
                self.module.to(torch.float64)
            self.dtype = DTYPES["float64"]
            self.output()
        except SubjectRaised:
            self.ended = True  # a layer that cannot be cast says so


@contextmanager
def life(context: Context, case: LifeCase, watched: Collection[str] = ()) -> Iterator[Life]:
    """A subject's layer at the start of a sequence; its files, where it saves any, go afterwards."""
    with ExitStack() as opened:
        made = functools.cache(
            lambda: Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="audit-")))
        )
        layer = Life(context, case, made, watched)
        try:
            yield layer
        except Deviation as found:
            _only_what_was_done(found, layer)
            raise
        except SubjectRaised as error:
            error.case = error.case or dataclasses.replace(case, steps=tuple(layer.taken))
            raise


def _only_what_was_done(found: Deviation, layer: Life) -> None:
    """Leave out of a deviation's case the steps that were passed over."""
    told = found.witness.case
    if "steps" in told and len(layer.taken) < len(layer.case.steps):
        told = {**told, "steps": " · ".join(map(called, layer.taken)) or "none"}
        found.witness = dataclasses.replace(found.witness, case=told)


def _told_of(tensor: str) -> ToldElsewhere:
    """A life cannot be followed without a tensor of the method: that is one finding, of the shapes."""
    return ToldElsewhere(
        f"the subject has no slot {tensor!r} of the canonical shape, which shapes.canonical reports",
        "shapes.canonical",
    )
