"""A right library with several named adapters on a layer: the equations of the records, held in torch modules."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from harness.compare.life_model import Held, folding
from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot, Unsupported
from oracles.variants import VARIANTS, Variant

Folded = tuple[Tensor, Tensor | None]


class Adapter(nn.Module):
    """The canonical tensors of one adapter, under their own names; what it leaves of the weight is a buffer."""

    def __init__(self, W: Tensor, spec: AdapterSpec) -> None:
        super().__init__()
        self.spec, self.record = spec, VARIANTS[spec.variant]
        for name, value in self.record.form.initial(W.double(), spec).items():
            value = value.to(torch.promote_types(W.dtype, torch.float32))
            if self.record.form.role(name) == "parameter":
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by its canonical name."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def own(self) -> dict[str, Tensor]:
        """Those that have a slot and go into a file."""
        return {n: t for n, t in self.tensors().items() if self.record.form.role(n) != "base"}


class Layer(nn.Module):
    """A frozen linear layer and its adapters; while they are folded in, the base's own weight is kept aside."""

    def __init__(self, base: nn.Linear, spec: AdapterSpec) -> None:
        super().__init__()
        self.base, self.record = base.requires_grad_(False), VARIANTS[spec.variant]
        self.adapters = nn.ModuleDict()
        self.active: list[str] = []
        self.aside: dict[str, Tensor] = {}
        self.add("default", spec)
        self.switch(["default"])
        self.train(base.training)

    @property
    def merged(self) -> bool:
        return bool(self.aside)

    def plain_weight(self) -> Tensor:
        """The base's own weight, folded into or not."""
        return self.aside.get("weight", self.base.weight.detach())

    def adapter(self, name: str) -> Adapter:
        return self.adapters["adapter_" + name]  # type: ignore[return-value]

    def add(self, name: str, spec: AdapterSpec) -> None:
        if "adapter_" + name in self.adapters:
            raise ValueError(f"there is an adapter {name!r}")
        check(spec)
        self.adapters["adapter_" + name] = Adapter(self.plain_weight(), spec).requires_grad_(False)

    def switch(self, names: Sequence[str]) -> None:
        if unknown := [n for n in names if "adapter_" + n not in self.adapters]:
            raise ValueError(f"there is no adapter {unknown[0]!r}")
        self.unfold()
        self.active = list(names)
        for key, adapter in self.adapters.items():
            adapter.requires_grad_(key.removeprefix("adapter_") in names)

    def delete(self, name: str) -> None:
        if "adapter_" + name not in self.adapters:
            raise ValueError(f"there is no adapter {name!r}")
        self.switch([n for n in self.active if n != name])
        del self.adapters["adapter_" + name]

    def acting(self) -> list[tuple[dict[str, Tensor], AdapterSpec]]:
        """(tensors, spec) of those that are active, in their order."""
        return [(self.adapter(n).tensors(), self.adapter(n).spec) for n in self.active]

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) if self.merged or not self.active else self.adapted(x)

    def adapted(self, x: Tensor) -> Tensor:
        W, b = self.base.weight, self.base.bias
        kind = torch.promote_types(W.dtype, torch.float32)
        b = None if b is None else b.to(kind)
        return self.compose(self.acting(), W.to(kind), b, x.to(kind)).to(W.dtype)

    def compose(self, active: list, W: Tensor, b: Tensor | None, x: Tensor) -> Tensor:
        return self.record.compose_adapters(active, W, b, x)

    def folded(self) -> Folded:
        """The weight and bias of a layer without adapters that computes the same."""
        kind = torch.promote_types(self.base.weight.dtype, torch.float32)
        b = self.base.bias
        held = [Held(spec, tensors) for tensors, spec in self.acting()]
        with torch.no_grad():
            return folding(self.compose)((self.base.weight.to(kind), None if b is None else b.to(kind)), held)

    def fold(self) -> None:
        if self.merged or not self.active:
            return
        W, b = self.folded()
        self.aside = {n: p.detach().clone() for n, p in self.base.named_parameters()}
        self.write(W, b)

    def write(self, W: Tensor, b: Tensor | None) -> None:
        with torch.no_grad():
            self.base.weight.copy_(W)
            if b is not None:
                self.base.bias.copy_(b)

    def unfold(self) -> None:
        with torch.no_grad():
            for name, tensor in self.aside.items():
                getattr(self.base, name).copy_(tensor)
        self.aside = {}

    def to_plain(self) -> nn.Linear:
        other = copy.deepcopy(self)
        other.fold()
        return other.base

    def take_off(self) -> nn.Linear:
        self.unfold()
        return self.base


def check(spec: AdapterSpec) -> None:
    """Raises ValueError for what no adapter can be built from."""
    if spec.rank < 1 or not 0 <= spec.dropout < 1:
        raise ValueError(f"rank {spec.rank} and dropout {spec.dropout} make no adapter")


class Handle(Adapted):
    """Which of a layer's adapters this is."""

    name: str


def handle(layer: Layer, name: str) -> Handle:
    found = Handle(layer, {n: Slot(t) for n, t in layer.adapter(name).own().items()})
    object.__setattr__(found, "name", name)
    return found


class Library(Implementation):
    """The layer above behind the interface."""

    name, version = "lives", "1"
    variants = frozenset(VARIANTS)
    layer: type[Layer] = Layer

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        record: Variant = VARIANTS[spec.variant]
        if record.may_refuse(spec) or any(getattr(spec, mode, False) for mode in ("gram_schmidt",)):
            raise Unsupported("odd ranks and Gram-Schmidt are not offered")
        check(spec)
        return handle(self.layer(base, spec), "default")

    def add_adapter(self, adapted: Adapted, name: str, spec: AdapterSpec) -> Adapted:
        adapted.module.add(name, spec)
        return handle(adapted.module, name)

    def set_adapters(self, adapted: Adapted, names: Sequence[str]) -> None:
        adapted.module.switch(names)

    def delete_adapter(self, adapted: Adapted, name: str) -> None:
        adapted.module.delete(name)

    def merge_in_place(self, adapted: Adapted) -> None:
        adapted.module.fold()

    def unmerge(self, adapted: Adapted) -> None:
        adapted.module.unfold()

    def merge(self, adapted: Adapted) -> nn.Linear:
        return adapted.module.to_plain()

    def detach(self, adapted: Adapted) -> nn.Linear:
        return adapted.module.take_off()

    def save(self, adapted: Adapted, path: Path) -> None:
        adapter = adapted.module.adapter(adapted.name)
        tensors = {n: t.detach().clone().contiguous() for n, t in adapter.tensors().items()}
        save_file(tensors, path, metadata={"spec": json.dumps(asdict(adapter.spec))})

    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        _demand_spec(path, spec)
        found = self.adapt(base, spec)
        with torch.no_grad():
            for name, tensor in load_file(path).items():
                found.module.adapter("default").tensors()[name].copy_(tensor)
        return found


def _demand_spec(path: Path, spec: AdapterSpec) -> None:
    """Raises ValueError where the file was saved with another spec."""
    with safe_open(path, framework="pt") as file:
        stored = AdapterSpec(**json.loads(file.metadata()["spec"]))
    if stored != spec:
        raise ValueError(f"the file holds {stored}, not {spec}")
