"""An adapted layer of another kind: its tensors as matrices, what it computes as rows, and the equation of these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from harness.cases.kind_cases import KindCase, each_kind, options_of, quantised, shapes_of
from harness.compare import rounding
from harness.compare.abilities import can_quantise
from harness.compare.adapted_model import offers_models
from harness.compare.context import Context
from harness.compare.layer import BadAnswer, Layer, SubjectRaised, adapt, answering
from harness.compare.life_model import completed, left_by
from harness.compare.outcome import (
    Deviation,
    NoSlot,
    NotApplicable,
    NotOffered,
    OtherLayout,
    OutsideDomain,
    ToldElsewhere,
)
from harness.compare.refusals import is_crash
from harness.compare.rounding import Point, Quantities, coarser
from harness.compare.thresholds import THRESHOLDS
from oracles import plain_linear
from oracles.implementation import AdapterSpec, Implementation, Unsupported
from oracles.mistakes import mistakes_of
from oracles.seeding import seed_torch
from oracles.variants import paper
from reports.model import Diagnosis


class Kinds:
    """A subject's layer of a kind; canonical names and shapes outside, the subject's own within."""

    def __init__(self, layer: Layer, case: KindCase) -> None:
        self.layer, self.case = layer, case
        self.adapted = layer.adapted
        own = {t.name for t in case.variant.tensors if t.role != "base"}
        self.names = [name for name in layer.names if name in own]
        start = {name: self.value(name) for name in self.names}
        self.left = left_by(case.weight.double(), start, case.spec)

    def __call__(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def value(self, name: str) -> Tensor:
        """A tensor in the canonical shape, float64."""
        return self._canonical(name, self.layer.value(name))

    def _canonical(self, name: str, live: Tensor) -> Tensor:
        try:
            return self.case.matrix(name, live)
        except ValueError:
            raise self._other_layout(name, live) from None
        except RuntimeError:
            if self.case.groups > 1:
                raise OutsideDomain("of a grouped kernel there is more than one factorisation") from None
            raise self._other_layout(name, live) from None

    def _other_layout(self, name: str, live: Tensor) -> OtherLayout:
        """Without sizes and options in the sentence: one layout is one finding."""
        on = f"{self.case.kind} layers" + (" with groups" if self.case.groups > 1 else "")
        return OtherLayout(self.case, name, on, (self.case.canonical_shape(name), tuple(live.shape)))

    def is_a_guess(self) -> bool:
        """Whether a convolution's factors can be read as two functions: A in blocks, or one A for all groups."""
        return self.case.groups > 1 and _may_share(self.case, self.layer)

    def write(self, values: Mapping[str, Tensor]) -> None:
        """Canonical values into the slots."""
        for name, value in values.items():
            if name in self.names:
                self.layer.write({name: self.case.live(name, value, self.layer.value(name).shape)})

    def is_in_blocks(self, name: str) -> bool:
        """Whether the slot of a convolution with groups has each group's own block alone, and no zeros between."""
        return self.layer.value(name).numel() < self.value(name).numel()

    def parameters(self) -> dict[str, Tensor]:
        """Every canonical tensor; what has no slot and is determined by the weight, from the weight."""
        values = {name: self.value(name) for name in self.names} | self.left
        return completed(values, self.case.weight.double(), self.case.spec)

    def observe(self, case: KindCase, *, wants_gradient: bool = True) -> Quantities:
        """Output as rows, and the gradients of <G, y> by the tensors and, where it wants one, by x; float64."""
        x = case.x.requires_grad_(wants_gradient and case.input.is_floating_point())
        self.layer.clear_gradients()
        y = self.layer(x)
        rows = case.outputs(y)
        with answering(self.layer.who, "the backward pass"):
            if y.requires_grad:
                rows.backward(cotangent(case, rows.shape).to(rows.dtype))
        found = {"output": rows.detach().double()}
        for name in self.names:
            if self.layer.raw(name).requires_grad:
                found[f"gradient of {name}"] = self._canonical(name, self.layer.gradient(name))
        if x.grad is not None:
            found["gradient of x"] = x.grad.double()
        return found


def adapted(context: Context, case: KindCase, base: object = None) -> Kinds:
    """The subject on a layer of the case's kind. Raises NotOffered.

    A crash is no refusal (`harness/compare/refusals.py`): it is a fault of who calls the kind one that it takes.
    """
    if case.kind not in context.subject.layers:
        raise NotOffered(f"{case.kind} layers", "layers")
    _can_be_made(context, case)
    given: Any = base or case.base()  # before the seed: making one draws its start
    seed_torch(case.seed)
    with refusable(f"{case.spec.variant} on {case.what}"):
        layer = adapt(context.subject, given, case.spec)
    _refuse_a_plain_one(context, case, layer)
    if case.groups > 1 and _groups_share(context, case, layer):
        raise OutsideDomain(
            "the groups share A: another factorisation of the kernel than the references' blocks"
        )
    base = context.variant.base
    if base is not None and base.name not in layer.names:  # what is left of the weight is taken to be right
        _linear_starts_there(context, case)
    try:
        return Kinds(layer, case)
    except (NoSlot, OutsideDomain):
        # Tensors of another shape may be a layout of the library's own, or a fault that shows in the output.
        starts_at_the_base(context, case, layer)
        raise


def far(context: Context, case: KindCase, base: object = None) -> Kinds:
    """The subject on a layer of the case's kind, far from its start. Raises NotOffered."""
    layer = adapted(context, case, base)
    layer.write(case.far(dict.fromkeys(layer.names)))
    return layer


def _may_share(case: KindCase, layer: Layer) -> bool:
    """Whether A has a group's inputs, and B joins every output to the whole rank."""
    r = case.spec.rank
    sizes = {name: layer.value(name).numel() for name in ("A", "B") if name in layer.names}
    return sizes == {"A": case.in_features * r // case.groups, "B": case.out_features * r}


def _groups_share(context: Context, case: KindCase, layer: Layer) -> bool:
    """Whether every output of a convolution with groups goes through one A (r, in/groups): ΔW = B A as it is stored."""
    if not _may_share(case, layer):
        return False
    r = case.spec.rank
    try:
        layer = adapt(context.subject, case.base(), case.spec)  # the other one keeps its start
        kinds = Kinds(layer, case)
        kinds.write(case.far(dict.fromkeys(kinds.names)))
        values = {n: kinds.value(n) for n in kinds.names} | {"A": layer.value("A").reshape(r, -1)}
        W, b = case.base().weight.detach().double().flatten(1), case.bias_vector
        merged, bias = paper.effective(
            context.forward, W, None if b is None else b.double(), values, case.spec
        )
        rows = case.rows(case.input)
        exact = (
            rows @ (merged.repeat(1, case.groups) * case.mask(case.out_features, case.in_features)).mT + bias
        )
        with torch.no_grad():
            actual = case.outputs(layer(case.x)).double()
    except (NoSlot, OutsideDomain, KeyError, RuntimeError, SubjectRaised):
        return False
    return agrees(actual, exact, rounding.roundoff(coarser(case.torch_dtype)) * float(exact.norm()))


def on_each_kind(
    context: Context,
    case: KindCase,
    kinds: Sequence[str],
    ask: Callable[[Context, KindCase], None],
    *,
    both: bool = False,
) -> None:
    """Ask of a layer of every kind, or of ``both``, a square one and one that is not.

    One that is not taken hides no other. Raises NotOffered where none is.
    """
    refused: list[NotApplicable] = []
    unread: list[NoSlot] = []
    asked = list(each_kind(case, kinds, both=both))
    for each in asked:
        try:
            ask(context, context.abilities.fitted(each))
        except (NotOffered, OutsideDomain) as why:
            refused.append(why)
        except NoSlot as why:
            unread.append(why)
        except SubjectRaised as error:
            error.case = each
            raise
    if unread:
        raise unread[0]
    if len(refused) == len(asked):
        raise NotOffered("; ".join(dict.fromkeys(map(str, refused))), "layers")


@contextmanager
def refusable(what: str, mode: str = "layers") -> Iterator[None]:
    """What the subject refuses inside is a mode that is not offered; a crash is no refusal. Raises NotOffered."""
    try:
        yield
    except (SubjectRaised, Unsupported) as why:
        if is_crash(why):
            raise
        raise NotOffered(f"{what}: {why}", mode) from why


def starts_at_the_base(context: Context, case: KindCase, layer: Callable[[Tensor], Tensor]) -> None:
    """A fresh adapter answers as the base does, where the method promises it."""
    if not case.variant.starts_at_identity(case.spec):
        return
    base = case.base()
    with torch.no_grad():
        wanted, actual = base(case.x), layer(case.x)
    if actual.shape != wanted.shape:
        shapes = str(tuple(wanted.shape)), str(tuple(actual.shape))
        raise Deviation(case, "shape of the output", *shapes, diagnosis=_option_left_out(case, actual))
    rows = case.rows(case.input)
    size = float(rows.norm() * case.weight.double().norm() + wanted.double().norm()) * case.embed_scale
    unit = rounding.roundoff(rounding.coarser(case.torch_dtype))
    try:
        context.judge(case, "output at the start", actual.double(), wanted.double(), unit * size)
    except Deviation as found:
        _linear_starts_there(context, case)
        found.diagnosis = PLAIN_IN_PLACE if is_plain(case, actual) else _other_start(case, actual, wanted)
        found.alone = True  # where a linear layer starts as it should
        raise


def _linear_starts_there(context: Context, case: KindCase) -> None:
    """Raise ToldElsewhere where the subject's linear layer over the case's matrix does not start at that layer."""
    dtype, bias = case.torch_dtype, None if case.kind == "embedding" else case.bias_vector
    rows = case.rows(case.input).to(dtype)
    try:
        seed_torch(case.seed)
        layer = adapt(context.subject, plain_linear.plain(case.weight, bias, dtype), case.spec)
        with torch.no_grad():
            actual = layer(rows).double()
    except (SubjectRaised, Unsupported, BadAnswer):
        return
    weight = case.weight.double()
    wanted = rows.double() @ weight.mT + (0 if bias is None else bias.double())
    unit = rounding.roundoff(coarser(dtype)) * float(rows.double().norm() * weight.norm() + wanted.norm())
    if not agrees(actual, wanted, unit):
        raise ToldElsewhere("a fresh adapter on a linear layer answers otherwise, too", "init.identity")


def _other_start(case: KindCase, actual: Tensor, wanted: Tensor) -> Diagnosis:
    """An option without which the layer answers so; or what is added to its output: the same to every row, or not."""
    if left_out := _option_left_out(case, actual):
        return left_out
    gap = case.outputs(actual - wanted).double()
    unit = rounding.roundoff(coarser(case.torch_dtype)) * float(wanted.double().norm())
    shifted = gap.shape[0] > 1 and agrees(gap, gap.mean(0, keepdim=True).expand_as(gap), unit)
    return OTHER_BIAS if shifted else OTHER_START


def _option_left_out(case: KindCase, actual: Tensor) -> Diagnosis | None:
    """The option of a convolution without which the layer itself answers what the adapted one does."""
    for option, default in DEFAULTS.items():
        if case.kind != "conv2d" or getattr(case, option) == default:
            continue
        with torch.no_grad():
            without = _without(case, option)(case.x)
        unit = rounding.roundoff(coarser(case.torch_dtype)) * float(without.double().norm())
        if without.shape == actual.shape and agrees(actual.double(), without.double(), unit):
            return LEFT_OUT[option]
    return None


def merged_without(case: KindCase, folded: object) -> Diagnosis | None:
    """The option in which the convolution that a layer was merged into is not the layer's."""
    base = case.base()
    if not (isinstance(folded, nn.Conv2d) and isinstance(base, nn.Conv2d)):
        return None
    other = (o for o in MERGED_WITHOUT if getattr(folded, o) != getattr(base, o))
    return next((MERGED_WITHOUT[option] for option in other), None)


def _without(case: KindCase, option: str) -> Any:
    """The case's convolution with one option at torch's default."""
    return replace(case, **{option: DEFAULTS[option]}).base()


def is_plain(case: KindCase, actual: Tensor) -> bool:
    """Whether a fresh adapter answers as a plain embedding does, where the base scales its output."""
    if case.embed_scale == 1.0:
        return False
    rows = case.rows(case.input) @ case.weight.double().mT
    unit = rounding.roundoff(rounding.coarser(case.torch_dtype)) * float(rows.norm())
    return agrees(case.outputs(actual).double(), rows, unit)


def agrees(actual: Tensor, output: Tensor, unit: float) -> bool:
    """Whether two tensors differ by rounding alone; ``unit``: what one rounding may change their norm by."""
    return rounding.ratio(actual, output, unit) <= THRESHOLDS["formula"]


def _refuse_a_plain_one(context: Context, case: KindCase, layer: Layer) -> None:
    """Raise NotOffered for a plain embedding in the place of one that scales its output.

    Who replaces layers one by one chooses which, and so does the subject's file; a library that walks through a model
    has chosen itself.
    """
    starts_there = case.variant.starts_at_identity(case.spec)
    if case.embed_scale == 1.0 or offers_models(context.subject) or not starts_there:
        return
    with torch.no_grad():
        plain = is_plain(case, layer(case.x))
    if plain:
        raise NotOffered(
            f"{context.subject.name} puts a plain embedding in the place of one with a scale", "layers"
        )


def plain_ones_answer(context: Context, case: KindCase) -> bool:
    """Whether the plain layers of a kind, without the options of the case, are adapted and called without an error."""
    spec = replace(case.spec, rank=2)
    for shape in (s for s in shapes_of(case.kind) if not options_of(s)):
        plain = KindCase(spec, bias=case.bias, batch=(2,), dtype=case.dtype, kind=case.kind, **shape)
        try:
            adapt(context.subject, plain.base(), plain.spec)(plain.x)
        except SubjectRaised:
            return False
        except (Unsupported, BadAnswer):
            continue
    return True


_TAKEN: WeakKeyDictionary[Implementation, dict[tuple[str, str], bool]] = WeakKeyDictionary()


def takes(context: Context, case: KindCase) -> bool:
    """Whether the subject adapts layers of a kind with this variant, asked once with the plainest of them.

    Raises OutsideDomain where no library that quantises is installed.
    """
    _can_be_made(context, case)
    known, key = _TAKEN.setdefault(context.subject, {}), (context.variant.id, case.kind)
    if key not in known:
        known[key] = _is_taken(context, case.kind)
    return known[key]


def _can_be_made(context: Context, case: KindCase) -> None:
    if case.kind != "quantised":
        return
    if not case.quantiser:
        raise OutsideDomain("no library that quantises is installed here: torchao or bitsandbytes")
    if not can_quantise(context.subject, case.quantiser):
        raise OutsideDomain(f"no {case.quantiser.split()[0]} in the subject's environment")


def _is_taken(context: Context, kind: str) -> bool:
    shapes = shapes_of(kind)
    if not shapes:
        return False
    case = KindCase(
        AdapterSpec(context.variant.id, rank=2, alpha=3.5),
        bias=kind != "embedding",
        batch=(2,),
        kind=kind,
        **shapes[0],
    )
    try:
        adapted(context, context.abilities.fitted(case))
    except (NotOffered, NoSlot, SubjectRaised):
        return False
    return True


def cotangent(case: KindCase, shape: torch.Size) -> Tensor:
    """G (n, out) in float64, the same for every layer of the case."""
    return torch.randn(shape, generator=case.generator(3), dtype=torch.float64)


def equation_at(context: Context, case: KindCase, layer: Kinds) -> tuple[Quantities, Callable[[str], float]]:
    """The equation's quantities at the layer's parameters, and the rounding noise of each, measured when asked."""
    rows = case.rows(case.input)
    b = None if case.bias_vector is None or case.kind == "embedding" else case.bias_vector.double()
    G = cotangent(case, torch.Size((rows.shape[0], case.out_features))) * case.embed_scale
    point = Point(rows, case.weight.double(), b, layer.parameters(), G, case.spec)
    trained = [n for n in layer.names if layer.layer.raw(n).requires_grad]
    in_blocks = [f"gradient of {n}" for n in layer.names if layer.is_in_blocks(n)]

    def at(p: Point) -> Quantities:
        return of_layer(case, rounding.evaluate(context.forward, p, trained, True), in_blocks)

    @cache
    def noise() -> dict[str, float]:
        return rounding.noise(at, point, coarser(case.torch_dtype), case.generator(7))

    exact = at(point)
    return exact, lambda name: noise()[name]


def of_layer(case: KindCase, found: Quantities, in_blocks: Sequence[str]) -> Quantities:
    """Quantities of the rows as quantities of the layer: scaled, folded, without what is not asked."""
    found = {**found, "output": found["output"] * case.embed_scale}
    gradient = found.pop("gradient of x")
    if case.kind != "embedding":
        found["gradient of x"] = case.back(gradient)
    found |= {n: found[n] * case.mask(*found[n].shape) for n in in_blocks if n in found}
    if case.padding_idx is not None:  # whether the padding's own row learns is not said
        found = {
            n: g for n, g in found.items() if not n.startswith("gradient") or case.in_features not in g.shape
        }
    return found


def quantising_error(context: Context, case: KindCase, layer: Kinds, exact: Tensor) -> float:
    """Twice what quantising the right merged weight, by the layer's own library, does to the output.

    As a floor: the threshold's multiple of it is what may be lost.
    """
    b = None if case.bias_vector is None else case.bias_vector.double()
    with torch.no_grad():
        W, bias = paper.effective(context.forward, case.weight.double(), b, layer.parameters(), case.spec)
        best = quantised(case, W.float(), None if b is None else bias.float())
        lost = case.outputs(best(case.x)).double() - exact
    return 2 * float(lost.norm()) / THRESHOLDS["formula"]


CATALOGUE: list[Diagnosis] = []  # every fault on a kind of layer that has a name


def _says(name: str, summary: str, failure_mode: str) -> Diagnosis:
    entry = Diagnosis(f"layers.{name}", summary, failure_mode)
    CATALOGUE.append(entry)
    return entry


PLAIN_IN_PLACE = _says(
    "plain_in_place",
    "a plain embedding takes the place of one that scales its output: the scale is lost",
    "the rows of a model whose embedding is adapted come out unscaled, before anything is trained",
)
OTHER_BIAS = _says(
    "other_bias",
    "a fresh adapter adds a constant to every row of the output: a bias that the layer has not, or has otherwise",
    "every model with such a layer answers otherwise as soon as it is adapted",
)
OTHER_START = _says(
    "other_start",
    "a fresh adapter on this kind of layer answers otherwise than the layer itself",
    "every model with such a layer answers otherwise as soon as it is adapted, whatever the adapter then learns",
)
# A convolution's options as torch has them by default.
DEFAULTS: dict[str, Any] = {"padding_mode": "zeros", "dilation": 1, "stride": 1, "padding": 0}
LEFT_OUT = {
    option: _says(
        f"{option}_left_out",
        f"the layer that takes a convolution's place leaves its {option.replace('_', ' ')} out, of the base, too",
        "every model with such a layer answers otherwise as soon as it is adapted, whatever the adapter then learns",
    )
    for option in DEFAULTS
}
# What a merged convolution takes over from the layer.
MERGED_WITHOUT = {
    option: _says(
        f"merged_without_{option}",
        f"the convolution that the layer is merged into has another {option.replace('_', ' ')} than the layer",
        "what is deployed computes another function than what was trained, or raises",
    )
    for option in ("groups", *DEFAULTS)
}
UPDATE_LOST = _says(
    "update_lost", "the base answers: the update is lost", "the adapter has no effect on layers of this kind"
)
BIAS_LOST = _says(
    "bias_lost", "the bias is left out", "the output is shifted; nothing shows on layers without a bias"
)
SCALE_LOST = _says(
    "embed_scale",
    "the embedding's scale multiplies the base's rows and not the adapter's",
    "the update is too small by the scale, which is the square root of the width in several models",
)
TRANSPOSED = _says(
    "transposed",
    "the update is that of the transposed layout",
    "on square layers another function is computed, and nothing raises",
)


GROUPS_IGNORED = _says(
    "groups_ignored",
    "every group of the convolution gets the first group's coordinates",
    "the update is right in the first group alone; nothing raises, and nothing shows without groups",
)
STRIDE_IGNORED = _says(
    "stride_ignored",
    "the adapter's own convolution has a stride of one",
    "each output gets the update of another place in the image",
)
PADDED_WITH_ZEROS = _says(
    "padded_with_zeros",
    "the adapter's own convolution pads with zeros where the layer pads otherwise",
    "at the images' edges the update is another than what merging it gives",
)
MIRRORED = _says(
    "mirrored",
    "the positions of the update's kernel are mirrored",
    "the update is that of the kernel turned round; nothing shows on kernels of one position",
)


def explain(context: Context, case: KindCase, layer: Kinds, actual: Tensor) -> Diagnosis | None:
    """The known fault whose output the rows are, if one is."""
    scale = float(actual.norm()) + float(case.rows(case.input).norm() * case.weight.double().norm())
    unit = rounding.roundoff(coarser(case.torch_dtype)) * scale
    for diagnosis, output in _faulty(context, case, layer):
        if agrees(actual, output, unit):
            return diagnosis
    return None


def explain_gradient(context: Context, case: KindCase, layer: Kinds, actual: Tensor) -> Diagnosis | None:
    """The catalogue's cut base path, where the gradient of x is the adapter's part alone."""
    cut = next((m for m in mistakes_of(case.variant.id) if m.id.endswith(".base_path_cut")), None)
    if cut is None:
        return None
    with torch.no_grad():
        merged, _ = paper.effective(
            context.forward, case.weight.double(), None, layer.parameters(), case.spec
        )
        rows = case.rows(case.input)
        G = cotangent(case, torch.Size((rows.shape[0], case.out_features))) * case.embed_scale
        own = case.back(G @ (merged - case.weight.double()))
    unit = rounding.roundoff(coarser(case.torch_dtype)) * float(G.norm() * merged.norm())
    if not agrees(actual, own, unit):
        return None
    return Diagnosis(cut.id, cut.summary, cut.failure_mode, source="catalogue", remedy=cut.remedy)


def _faulty(context: Context, case: KindCase, layer: Kinds) -> Iterator[tuple[Diagnosis, Tensor]]:
    W, b, e = case.weight.double(), case.bias_vector, case.embed_scale
    shift = torch.zeros(case.out_features, dtype=torch.float64) if b is None else b.double()
    rows = case.rows(case.input)
    with torch.no_grad():
        merged, bias = paper.effective(
            context.forward, W, None if b is None else shift, layer.parameters(), case.spec
        )
    change = merged - W
    yield UPDATE_LOST, rows @ W.mT * e + shift
    if b is not None:
        yield BIAS_LOST, rows @ merged.mT
    if e != 1.0:
        yield SCALE_LOST, rows @ W.mT * e + rows @ change.mT
    if case.in_features == case.out_features:
        yield TRANSPOSED, rows @ (W + change.mT).mT * e + bias
    if case.kind == "conv2d":
        yield from _faulty_convolutions(context, case, layer, change)


def _faulty_convolutions(
    context: Context, case: KindCase, layer: Kinds, change: Tensor
) -> Iterator[tuple[Diagnosis, Tensor]]:
    """With the right base path and another update: ``change`` (out, in) is the right one."""
    rows, W = case.rows(case.input), case.weight.double()
    base = rows @ W.mT + (0 if case.bias_vector is None else case.bias_vector.double())
    if case.groups > 1:
        values = {n: case.of_first_group(v) for n, v in layer.parameters().items()}
        with torch.no_grad():
            wrong, _ = paper.effective(context.forward, W, None, values, case.spec)
        yield GROUPS_IGNORED, base + rows @ (wrong - W).mT
    if max(case.two(case.stride)) > 1:
        yield STRIDE_IGNORED, base + case.rows_from_the_corner(case.input) @ change.mT
    if case.padding_mode != "zeros":
        yield PADDED_WITH_ZEROS, base + replace(case, padding_mode="zeros").rows(case.input) @ change.mT
    if case.positions > 1:
        turned = change.reshape(case.out_features, -1, case.positions).flip(-1).flatten(1)
        yield MIRRORED, base + rows @ turned.mT
