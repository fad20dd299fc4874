"""What a method's file is made of: its record, its equation in parts, its mistakes, and how PEFT is asked for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from oracles.implementation import AdapterSpec
from refs.vocabulary import Severity

if TYPE_CHECKING:
    import peft

Role = Literal["parameter", "buffer", "base"]
Source = Literal[
    "global", "spec"
]  # whose generator a tensor is drawn from: torch's, or one seeded by the spec
Parameters = Mapping[str, Tensor]
Shape = Callable[[int, int, AdapterSpec], tuple[int, ...]]
Bound = Callable[[int, int, AdapterSpec], float]  # (out, in, spec) -> bound
Start = Callable[[Tensor, AdapterSpec], Tensor]  # (W (out, in), spec) -> value
Far = Callable[[tuple[int, ...], AdapterSpec, torch.Generator], Tensor]
Forward = Callable[[Tensor, Tensor, Tensor | None, Parameters, AdapterSpec, Tensor], Tensor]


# What a method has


@dataclass(frozen=True)
class Uniform:
    """Entries drawn from U(-bound, bound); ``paired``: whether columns 2i and 2i+1 are one draw, where that exists."""

    bound: Bound
    paired: Callable[[AdapterSpec], bool] | None = None

    @property
    def columns_paired(self) -> bool:
        """Whether there is a spec for which columns come in equal pairs."""
        return self.paired is not None


@dataclass(frozen=True)
class Canonical:
    """One canonical tensor: name, shape (out, in, spec) -> dims, role, and how it starts.

    ``exact`` gives the starting value from the base weight in float64; ``uniform`` the distribution it is drawn
    from (``gaussian``: the reference that draws a Gaussian instead), ``drawn_from`` whose generator that is; neither:
    determined up to a gauge (PiSSA). ``far`` draws a value far from initialisation. ``factor``: one whose norm is
    divided out or cancels, which is made small to see how norms near zero are guarded.
    """

    name: str
    shape: Shape
    role: Role = "parameter"
    exact: Start | None = None
    uniform: Uniform | None = None
    far: Far | None = None
    gaussian: str | None = None
    drawn_from: Source = "global"
    factor: bool = False


@dataclass(frozen=True)
class Option:
    """What a spec can say of one method only: a field of AdapterSpec, or a key of its ``options``.

    ``values``: what the cases draw it from. ``mode``: it is off by default, and asked on its own. ``side``: it says on
    which side of a layer the adapter acts, where a model's layers have theirs by default. ``key``: it seeds the
    generator that tensors with ``drawn_from="spec"`` come from.
    """

    name: str
    default: Any
    values: tuple[Any, ...] = ()
    mode: bool = False
    side: bool = False
    key: bool = False

    def of(self, spec: AdapterSpec) -> Any:
        """Its value in ``spec``."""
        if self.name in AdapterSpec.__dataclass_fields__:
            return getattr(spec, self.name)
        return spec.options.get(self.name, self.default)

    def put(self, spec: AdapterSpec, value: Any) -> AdapterSpec:
        """``spec`` with it set to ``value``."""
        if self.name in AdapterSpec.__dataclass_fields__:
            changes: dict[str, Any] = {self.name: value}
            return dataclasses.replace(spec, **changes)
        return dataclasses.replace(spec, options={**spec.options, self.name: value})


# The equation, in parts


@dataclass(frozen=True)
class Call:
    """One call: x (..., in), W (out, in), b (out,) or None, the parameters; ``place``: what the dropout acts on."""

    x: Tensor
    W: Tensor
    b: Tensor | None
    p: Parameters
    spec: AdapterSpec
    place: str = "input"
    mask: Callable[[Tensor], Tensor] = lambda t: t

    def drop(self, place: str, t: Tensor) -> Tensor:
        """``t`` with the dropout on it, if this is where it acts."""
        return self.mask(t) if place == self.place else t


def drop_entries(t: Tensor, rate: float, training: bool) -> Tensor:
    """Inverted dropout: in training each entry is zero with probability ``rate``, or divided by 1 − rate."""
    return nn.functional.dropout(t, rate, training)


def as_input(y: Tensor, x: Tensor, base: nn.Linear) -> Tensor:
    """The output in the dtype of the input."""
    return y.to(x.dtype)


# Trained vectors that only wrong forms have: of one entry for each output, or for each of the rank. They get no slot.
OWN_OUT, OWN_RANK = "own_out", "own_rank"

# What every form has, whatever the method: where dropout acts and how, what is saved, who gets a gradient.
COMMON_PARTS: Mapping[str, Any] = {
    "place": "input",
    "mask": drop_entries,
    "finish": as_input,
    "not_saved": frozenset(),
    "renamed_on_save": dict,
    "trainable_base_bias": False,
    "trainable_base": False,
    "dead_until_step": 0,
    "hidden": frozenset(),  # tensors that get no slot
    "copies": {},  # hidden tensor -> the slot whose start it keeps
}
Equation = Callable[[Call, Any], Tensor]
# Joint starting values of several tensors, from the weight, the spec and the parts.
Joint = Callable[[Tensor, AdapterSpec, Any], dict[str, Tensor]]


@dataclass(frozen=True)
class Form:
    """One way of implementing a method: its equation, and the parts that another implementation may have otherwise.

    Parts are named: those of the equation ("scale", "norm"), ``start.NAME`` (the starting value of a tensor; a tensor
    that only a wrong form has is added this way), ``role.NAME``, and :data:`COMMON_PARTS`.
    """

    equation: Equation
    parts: Mapping[str, Any]
    joint: Joint | None = None

    def but(self, **changes: Any) -> Form:
        """This form with some parts replaced, or with another ``equation`` or ``joint`` start."""
        own = {name: changes.pop(name) for name in ("equation", "joint") if name in changes}
        return dataclasses.replace(self, parts={**self.parts, **changes}, **own)

    @property
    def do(self) -> Any:
        """The parts as attributes, as the equation reads them."""
        return SimpleNamespace(**self.parts)

    def forward(
        self, x: Tensor, W: Tensor, b: Tensor | None, p: Parameters, spec: AdapterSpec, dropped: Tensor
    ) -> Tensor:
        """The output (..., out); ``dropped`` is the adapter branch's input: x itself where nothing is dropped."""
        return self.equation(Call(x, W, b, p, spec, mask=lambda t: dropped), self.do)

    def called(self, call: Call) -> Tensor:
        """The output of a call with the form's own dropout."""
        call = dataclasses.replace(call, place=self.parts["place"])
        call = dataclasses.replace(call, x=call.drop("everything", call.x))
        return call.drop("output", self.equation(call, self.do))

    def initial(self, W: Tensor, spec: AdapterSpec) -> dict[str, Tensor]:
        """The starting values in float64, random ones from torch's generator in the record's order."""
        values = self.joint(W, spec, self.do) if self.joint else {}
        starts = {
            n.removeprefix("start."): start for n, start in self.parts.items() if n.startswith("start.")
        }
        values |= {name: start(W, spec) for name, start in starts.items()}
        return values | {copy: values[slot].clone() for copy, slot in self.parts["copies"].items()}

    def has_slot(self, name: str) -> bool:
        """Whether a tensor is told of."""
        return name not in (*self.parts["hidden"], OWN_OUT, OWN_RANK)

    def role(self, name: str) -> Role:
        """Whether a tensor is trained."""
        return self.parts.get(f"role.{name}", "parameter")


def of_forward(forward: Forward) -> Equation:
    """A plain function as an equation without parts."""
    return lambda call, do: forward(call.x, call.W, call.b, call.p, call.spec, call.drop("input", call.x))


def drawn(tensor: Canonical) -> Start:
    """A tensor's random start, from torch's global generator, in float64."""

    def draw(W: Tensor, spec: AdapterSpec) -> Tensor:
        assert tensor.uniform is not None
        out, in_ = W.shape
        shape, bound = tensor.shape(out, in_, spec), tensor.uniform.bound(out, in_, spec)
        paired = tensor.uniform.paired is not None and tensor.uniform.paired(spec)
        columns = shape[1] // 2 if paired else shape[1]
        half = (torch.rand(shape[0], columns, dtype=torch.float64) * 2 - 1) * bound
        return half.repeat_interleave(2, dim=1) if paired else half

    return draw


def form_of(
    equation: Equation, tensors: Sequence[Canonical], joint: Joint | None = None, **parts: Any
) -> Form:
    """The right form: each tensor starts and trains as the record has it."""
    starts = {
        f"start.{t.name}": t.exact or drawn(t)
        for t in tensors
        if t.exact is not None or t.uniform is not None
    }
    roles = {f"role.{t.name}": t.role for t in tensors}
    return Form(equation, {**COMMON_PARTS, **starts, **roles, **parts}, joint)


# Its mistakes

# The aspect whose lines decide a part, where they are not those of the forward pass.
DECIDED_AT = {
    "scale": "scale",
    "start": "init",
    "triples": "init",
    "factors": "init",
    "residual": "init",
    "place": "dropout",
    "mask": "dropout",
}
Subject = Literal["start", "output", "gradient", "dropout", "roles", "saved", "dtype"]
# What a part is about, where it is not the output: so that a mistake knows what it speaks of.
SPEAKS_OF: dict[str, Subject] = {
    "start": "start",
    "triples": "start",
    "factors": "start",
    "residual": "start",
    "role": "roles",
    "trainable_base_bias": "roles",
    "trainable_base": "roles",
    "place": "dropout",
    "mask": "dropout",
    "not_saved": "saved",
    "renamed_on_save": "saved",
    "finish": "dtype",
    "dead_until_step": "gradient",
    "branch": "gradient",
    "scaled": "gradient",
    "base_input": "gradient",
    "adapter_input": "gradient",
    "constant": "gradient",
}


@dataclass(frozen=True)
class Mistake:
    """A known wrong implementation: parts of the right form, replaced.

    ``remedy``: one imperative sentence, what to change. ``agrees_with``: the reference that has this form; a subject
    that has it differs, and is not wrong. ``documented``: phrases (regular expressions) of which any one, in the
    subject's docstring, states the choice. ``about`` where what the parts are about does not say it.
    ``agrees_from_zero``: the reference that has this form where what it has of its own starts at zero.
    """

    id: str
    summary: str
    failure_mode: str
    changes: Mapping[str, Any]
    remedy: str
    agrees_with: str | None = None
    documented: tuple[str, ...] = ()
    severity: Severity | None = None
    about: frozenset[Subject] | None = None
    agrees_from_zero: str | None = None

    @property
    def variant(self) -> str:
        """The method that is implemented wrongly."""
        return self.id.partition(".")[0]

    @property
    def parts(self) -> frozenset[str]:
        """The parts that it replaces."""
        return frozenset(self.changes)

    @property
    def has_own(self) -> bool:
        """Whether it trains a tensor that the method does not have."""
        return bool(self.parts & {f"start.{OWN_OUT}", f"start.{OWN_RANK}"})

    @property
    def speaks_of(self) -> frozenset[Subject]:
        """Which quantities it is about."""
        if self.about is not None:
            return self.about
        return frozenset(SPEAKS_OF.get(part.partition(".")[0], "output") for part in self.changes)

    @property
    def place(self) -> str:
        """The aspect whose lines decide all of its parts; empty where there is no such one."""
        places = {DECIDED_AT.get(part.partition(".")[0], "") for part in self.changes}
        return places.pop() if len(places) == 1 else ""

    def apply(self, form: Form) -> Form:
        """``form`` with this mistake in it, whatever else is wrong with it."""
        return form.but(**self.changes)


# How PEFT is asked for it

Targets = list[str]
View = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Binding:
    """How a method is asked of PEFT, and where its canonical tensors live on the tuner layer.

    ``defaults``: fields of the config that are None where PEFT is to choose the targets. ``sided``: the spec of one
    layer of a model. ``tables``: the names in `peft.utils.constants` of PEFT's default targets by type of model and, of
    a method with two sides, of those that are adapted on the other one. ``keeps_matrices``: its forward pass keeps
    d × d matrices for the backward one. ``evaluated_as``: the method as which PEFT is asked in a dtype in which it
    refuses this one, the start written in. ``reads``: the spec that a checkpoint's ``adapter_config.json`` states, None
    where it is of another method. ``sources``: aspect -> file under `peft/tuners` and symbol.
    """

    config: Callable[[AdapterSpec, Targets], peft.PeftConfig]
    paths: Mapping[str, str]
    sources: Mapping[str, tuple[str, str]]
    view: Callable[[str, AdapterSpec, Any], View] | None = (
        None  # (tensor's name, spec, tuner layer) -> its view
    )
    defaults: tuple[str, ...] = ("target_modules",)
    sided: Callable[[nn.Module, AdapterSpec], AdapterSpec] = lambda layer, spec: spec
    reads: Callable[[Mapping[str, Any]], AdapterSpec | None] = lambda told: None
    evaluated_as: str | None = None
    tables: tuple[str, ...] = ("TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING",)
    keeps_matrices: bool = False


# The whole record

Factors = Callable[[Parameters, AdapterSpec], Tensor]  # parameters -> what they determine
Residual = Callable[
    [Tensor, Parameters, AdapterSpec], Tensor
]  # (W (out, in), parameters) -> base that is left


@dataclass(frozen=True)
class Factorised:
    """Of a method that starts from a factorisation of the weight: what its factors determine, and what is left.

    ``names``: the factors. ``determined``: quantities that are the same in every gauge, by name.
    """

    names: tuple[str, ...]
    residual: Residual
    determined: Mapping[str, Factors]


Active = tuple[Parameters, AdapterSpec]  # one adapter that acts
Compose = Callable[
    [Sequence[Active], Tensor, Tensor | None, Tensor], Tensor
]  # (active in order, W, b, x) -> y


@dataclass(frozen=True)
class Variant:
    """One adapter method, as the references agree on it; ``order``: its place in the review."""

    id: str
    order: int
    title: str
    paper: str
    equation: str
    tensors: tuple[Canonical, ...]
    form: Form
    mistakes: tuple[Mistake, ...]
    composition: str  # what several active adapters on one layer compute in PEFT, in words
    compose_adapters: Compose  # the same, without dropout
    also_composes: tuple[Compose, ...] = ()  # what PEFT itself computes where ``composition`` says so
    # The parameters with which the equation computes what an adapter does with the norms of another one.
    with_norms_of: Callable[[Active, Active, Tensor], Parameters] | None = None
    adapters_share: tuple[
        str, ...
    ] = ()  # fields of the spec that several adapters on one layer have in common
    peft: Binding | None = None
    options: tuple[Option, ...] = ()
    factorised: Factorised | None = None
    has_rank: bool = True
    has_dropout: bool = False
    refuses_dtypes: tuple[str, ...] = ()  # base dtypes that the reference of record refuses
    file_without_alpha: str | None = None  # a reference whose file holds no alpha, in words
    guards_norms: bool = False  # the reference of record keeps norms away from zero
    starts_at_identity: Callable[[AdapterSpec], bool] = lambda spec: True
    in_domain: Callable[[int, int, AdapterSpec], bool] = lambda out, in_, spec: True
    is_singular: Callable[[Mapping[str, Tensor], AdapterSpec], bool] = lambda values, spec: False
    # What a right implementation may not offer.
    may_refuse: Callable[[AdapterSpec], bool] = lambda spec: False
    of_record: dict[str, str] = field(default_factory=dict)  # aspect -> reference, where not PEFT

    def tensor(self, name: str) -> Canonical | None:
        """The canonical tensor of that name, or None."""
        return next((t for t in self.tensors if t.name == name), None)

    @property
    def base(self) -> Canonical | None:
        """The tensor that stands in the base weight's place while the adapter is attached, if there is one."""
        return next((t for t in self.tensors if t.role == "base"), None)

    @property
    def modes(self) -> tuple[str, ...]:
        """The options that are asked on their own."""
        return tuple(o.name for o in self.options if o.mode)

    @property
    def side(self) -> Option | None:
        """The option that says on which side of a layer the adapter acts, if the method has two."""
        return next((o for o in self.options if o.side), None)

    def option(self, name: str) -> Option:
        """The option of that name. Raises KeyError."""
        return {o.name: o for o in self.options}[name]

    def beside(self, first: AdapterSpec, other: AdapterSpec) -> AdapterSpec:
        """``other`` as an adapter on the same layer as ``first`` can be asked."""
        for name in self.adapters_share:
            known = next((o for o in self.options if o.name == name), Option(name, None))
            other = known.put(other, known.of(first))
        return other

    def weight_beneath(self, W: Tensor, values: Parameters) -> Tensor:
        """The weight (out, in) that the adapter acts on: what the parameters hold of it, else ``W``."""
        return values[self.base.name] if self.base and self.base.name in values else W

    def source(self, aspect: str) -> tuple[Path, str]:
        """The equation's file and symbol."""
        from inspect import getsourcefile

        return Path(getsourcefile(self.form.equation) or ""), self.form.equation.__name__
