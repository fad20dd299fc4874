"""What is measured of one variant on a pretrained model, for the subject and for PEFT."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from harness.cases.tiny_models import put
from harness.compare.layer import Layer, SubjectRaised, answering
from harness.probe.memory import Cost, cost
from harness.probe.pretrained import Pretrained
from oracles.implementation import AdapterSpec, Implementation, Unsupported
from oracles.seeding import seed_torch
from oracles.variants import VARIANTS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
RATE = 1e-3
Say = Callable[[str], None]


@dataclass(frozen=True)
class Gap:
    """How far an output is from the base's: the largest entry, and the norm relative to the base's."""

    largest: float
    relative: float


def gap(actual: Tensor, exact: Tensor) -> Gap:
    """The gap between two outputs, in float64."""
    a, e = actual.detach().double(), exact.detach().double()
    size = float(torch.linalg.vector_norm(e))
    off = float(torch.linalg.vector_norm(a - e))
    return Gap(float((a - e).abs().max()), off / size if size else off)


@dataclass
class Side:
    """One implementation's numbers on one variant; what it does not offer stays empty."""

    who: str
    layers: int = 0
    trainable: int = 0
    logits: dict[str, Gap] = field(default_factory=dict)  # dtype -> gap at step 0
    by_layer: dict[str, dict[str, float]] = field(default_factory=dict)  # dtype -> layer -> relative gap
    gradients: dict[str, float] = field(default_factory=dict)  # canonical tensor -> norm over all layers
    losses: list[float] = field(default_factory=list)
    bytes_saved: int = 0
    reloaded: Gap | None = None
    attach: Cost = field(default_factory=Cost)
    steps: Cost = field(default_factory=Cost)
    note: str = ""


@dataclass
class Compared:
    """A variant: the subject beside PEFT."""

    spec: AdapterSpec
    subject: Side
    peft: Side

    @property
    def losses_apart(self) -> float:
        """The largest difference of the two losses at the same step."""
        pairs = zip(self.subject.losses, self.peft.losses, strict=False)
        return max((abs(a - b) for a, b in pairs), default=float("nan"))


Adapted = tuple[nn.Module, dict[str, Layer]]


def adapted(who: Implementation, model: nn.Module, spec: AdapterSpec) -> Adapted:
    """A copy of ``model`` with ``who``'s adapters on its default layers."""
    seed_torch(0)
    twin = copy.deepcopy(model)
    with answering(who.name, "adapt_model"):
        found = who.adapt_model(twin, spec)
    return twin, {name: Layer(a, who.name) for name, a in found.items()}


@torch.no_grad()
def answers(model: nn.Module, ids: Tensor) -> Tensor:
    """Logits of ``ids`` (batch, length, vocabulary)."""
    return model(input_ids=ids, use_cache=False).logits


class Recorder:
    """What went into and came out of named layers during one forward pass."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.seen: dict[str, tuple[Tensor, Tensor]] = {}
        self.handles = [model.get_submodule(n).register_forward_hook(self._keep(n)) for n in names]

    def _keep(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
            self.seen[name] = args[0].detach(), y.detach()

        return hook

    def close(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Take the hooks off; layer -> (input, output)."""
        for handle in self.handles:
            handle.remove()
        return self.seen


def identity(
    who: Implementation, base: nn.Module, given: Pretrained, spec: AdapterSpec, dtype: str, side: Side
) -> None:
    """The gap that a fresh adapter opens at the logits, and at each adapted layer given the base's own input."""
    with cost() as spent:
        model, layers = adapted(who, base, spec)
    if dtype == "fp32":
        side.attach, side.layers = spent, len(layers)
        side.trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    watch = Recorder(base, list(layers))
    exact = answers(base, given.prompt)
    seen = watch.close()
    side.logits[dtype] = gap(answers(model, given.prompt), exact)
    with torch.no_grad():
        side.by_layer[dtype] = {n: gap(layer(seen[n][0]), seen[n][1]).relative for n, layer in layers.items()}


def start_of(layers: Mapping[str, Layer], spec: AdapterSpec) -> dict[str, dict[str, Tensor]]:
    """Every slot's value, to start the other side from; none for PiSSA, whose start is its own and no draw."""
    if VARIANTS[spec.variant].factorised is not None:
        return {}
    return {name: layer.values() for name, layer in layers.items()}


def train(
    model: nn.Module, layers: Mapping[str, Layer], given: Pretrained, steps: int, side: Side, tick: Say
) -> None:
    """``steps`` of AdamW on the text: gradient norms of the first, the loss before each."""
    raw = {id(t): t for layer in layers.values() for n in layer.names if (t := layer.raw(n)).requires_grad}
    optimiser = torch.optim.AdamW(raw.values(), lr=RATE, weight_decay=0.0)
    with cost() as side.steps:
        for step in range(steps):
            ids = given.batches[step % len(given.batches)]
            optimiser.zero_grad()
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            if step == 0:
                side.gradients = gradient_norms(layers)
            side.losses.append(float(loss.detach()))
            optimiser.step()
            tick(f"{side.who}: step {step + 1}, loss {side.losses[-1]:.3f}")


@contextmanager
def recomputed(model: nn.Module, spec: AdapterSpec) -> Iterator[None]:
    """Blocks recomputed in the backward pass, on both sides, where PEFT keeps some d × d matrices: gigabytes.

    Only the blocks are in training mode, which is what switches it on: dropout inside them stays off.
    """
    binding = VARIANTS[spec.variant].peft
    large = binding is not None and binding.keeps_matrices
    offered = large and getattr(model, "supports_gradient_checkpointing", False)
    if offered:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        for block in model.modules():
            block.training = bool(getattr(block, "gradient_checkpointing", False))
    yield
    if offered:
        model.gradient_checkpointing_disable()  # type: ignore[operator]
    model.eval()


def gradient_norms(layers: Mapping[str, Layer]) -> dict[str, float]:
    """Per canonical tensor, the Frobenius norm of its gradient over all layers."""
    total: dict[str, float] = {}
    for layer in layers.values():
        for name in layer.names:
            if layer.raw(name).requires_grad:
                total[name] = total.get(name, 0.0) + float(layer.gradient(name).square().sum())
    return {name: value**0.5 for name, value in total.items()}


def persist(
    who: Implementation, base: nn.Module, trained: Adapted, given: Pretrained, spec: AdapterSpec, side: Side
) -> None:
    """Save every layer's adapter, load it into a fresh copy of the base, and compare the logits."""
    model, layers = trained
    exact = answers(model, given.prompt)
    fresh = copy.deepcopy(base)
    with tempfile.TemporaryDirectory() as folder:
        for i, (name, layer) in enumerate(layers.items()):
            path, place = Path(folder) / f"{i}.safetensors", fresh.get_submodule(name)
            with answering(who.name, f"save and load of {name}"):
                who.save(layer.adapted, path)
                loaded = who.load(place, as_placed(spec, layer, place), path)  # type: ignore[arg-type]
            if loaded.module is not place:
                put(fresh, name, loaded.module)
        side.bytes_saved = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())
    side.reloaded = gap(answers(fresh, given.prompt), exact)


def as_placed(spec: AdapterSpec, layer: Layer, base: nn.Module) -> AdapterSpec:
    """The spec of one layer of a model, whose method may act on the other side there: told by its tensors' shapes."""
    variant = VARIANTS[spec.variant]
    sides = [spec, *(o.put(spec, not o.of(spec)) for o in variant.options if o.side)]
    out, in_ = base.get_parameter("weight").shape
    return next((s for s in sides if _fits(layer, s, out, in_)), spec)


def _fits(layer: Layer, spec: AdapterSpec, out: int, in_: int) -> bool:
    wanted = {t.name: t.shape(out, in_, spec) for t in VARIANTS[spec.variant].tensors}
    return all(tuple(layer.value(name).shape) == wanted[name] for name in layer.names)


def compare(
    subject: Implementation, peft: Implementation, given: Pretrained, spec: AdapterSpec, steps: int, tick: Say
) -> Compared:
    """One variant, both implementations, on the same weights, text and starting values."""
    found = Compared(spec, Side(subject.name), Side("PEFT"))
    pairs = ((subject, found.subject), (peft, found.peft))
    for dtype, torch_dtype in DTYPES.items():
        base = given.model if dtype == "fp32" else copy.deepcopy(given.model).to(torch_dtype)
        for who, side in pairs:
            attempt(side, identity, who, base, given, spec, dtype, side)
            tick(f"{side.who}: {dtype} at step 0")
    del base
    start = _both_train(peft, found.peft, given, spec, steps, tick, None)
    _both_train(subject, found.subject, given, spec, steps, tick, start)
    return found


Start = dict[str, dict[str, Tensor]] | None


def _both_train(
    who: Implementation, side: Side, given: Pretrained, spec: AdapterSpec, steps: int, tick: Say, start: Start
) -> Start:
    """Train ``who`` from ``start`` (its own if None), then save and load; the values it started from."""
    try:
        model, layers = adapted(who, given.model, spec)
    except (SubjectRaised, Unsupported) as error:
        side.note = str(error)
        return start
    carry(start or {}, layers)
    began = start_of(layers, spec) if start is None else None  # float64: not kept where nobody asks for it
    with recomputed(model, spec):
        attempt(side, train, model, layers, given, steps, side, tick)
    if start is not None:
        attempt(side, persist, who, given.model, (model, layers), given, spec, side)
    else:
        side.bytes_saved = sum(t.numel() * t.element_size() for t in _stored(layers))
    return began


def carry(start: dict[str, dict[str, Tensor]], layers: Mapping[str, Layer]) -> None:
    """Write one side's start into the other."""
    for name in start.keys() & layers.keys():
        layers[name].write(start[name])


def _stored(layers: Mapping[str, Layer]) -> list[Tensor]:
    # PEFT's file: every slot but the base weight.
    bases = {v.base.name for v in VARIANTS.values() if v.base}
    return [layer.raw(n) for layer in layers.values() for n in layer.names if n not in bases]


def attempt(side: Side, ask: Callable[..., None], *args: object) -> None:
    """Ask, and note in a sentence what the implementation does not do."""
    try:
        ask(*args)
    except (Unsupported, SubjectRaised) as error:
        side.note = str(error)
