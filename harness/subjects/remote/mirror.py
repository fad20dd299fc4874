"""Stand-ins for the modules and tensors of a subject's process.

A :class:`World` is everything reachable from one base or model. Its tensors are copies that are kept in step: what
was written here goes there before a request, what changed there comes back with the reply. Its modules are real
``nn.Module`` trees: those that compute only what their class makes of their tensors compute here, every other one
asks the worker, and its backward pass asks again.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.cases.leaf_output import has_leaf_output
from harness.cases.quantised_from import QuantisedFrom, quantised_from
from harness.compare.isolation import SubjectDied
from harness.subjects.remote.messages import Parcel, Raw, exception_of, opaque, raise_for
from harness.subjects.remote.process import TORCH, Worker
from harness.subjects.remote.recipes import recipe_of
from oracles.implementation import Adapted, AdapterSpec, Slot, Unsupported, identity

LINK = "_audited_link"


@dataclass(frozen=True)
class Link:
    """Which module of which world a module here stands for; a copy of the module stands for none."""

    world: World
    number: int

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _nothing, ()


def _nothing() -> None:
    return None


def _quantised_base(
    recipe: dict[str, Any], modules: list[Any], origin: QuantisedFrom, parcel: Parcel
) -> dict[str, Any]:
    """What the worker quantises again. The tensors that come of it are told with the reply, as all made there are."""
    values = {"weight": origin.weight, "bias": origin.bias}
    tensors = [[n, 0, parcel.add(v), False, True] for n, v in values.items() if v is not None]
    return {"recipe": recipe, "modules": modules, "tensors": tensors, "evaluating": []}


@dataclass(frozen=True)
class RemoteAdapted(Adapted):
    """An adapted layer there: its module's stand-in and its slots' tensors here."""

    world: World
    number: int


class BadSlots(Mapping[str, Slot]):
    """Slots that could not be looked at: looking at them here raises what it raised there."""

    def __init__(self, error: dict[str, Any]) -> None:
        self.error = error

    def _raise(self) -> Any:
        raise exception_of(self.error)

    def __getitem__(self, name: str) -> Slot:
        return self._raise()

    def __iter__(self) -> Iterator[str]:
        return self._raise()

    def __len__(self) -> int:
        return 1


@dataclass
class Memory:
    """A storage here, and what the worker is known to have in its own."""

    storage: torch.UntypedStorage
    said: bytes

    def bytes(self) -> bytes:
        """What is in it now."""
        size = self.storage.nbytes()
        return ctypes.string_at(self.storage.data_ptr(), size) if size else b""


class World:
    """One base or model there, and its stand-ins here, by the worker's numbers."""

    def __init__(self, worker: Worker) -> None:
        self.worker, self.number = worker, next(worker.numbers)
        self.modules: dict[int, nn.Module] = {}
        self.kinds: dict[int, type[nn.Module]] = {}  # of modules that came from here: what they were
        self.tensors: dict[int, Tensor] = {}
        self.memories: dict[int, Memory] = {}
        self.told: dict[int, dict[str, Any]] = {}  # tensors' geometry and flags, as the worker has them
        self.trains: set[int] = set()  # modules whose ``train`` and ``eval`` are torch's, all the way down
        self.flags: dict[int, bool] = {}  # modules' training flags, likewise
        self.children: dict[int, dict[str, nn.Module | None]] = {}
        self.views: dict[tuple[int, str], Any] = {}
        self.bases: list[Callable[[Parcel], dict[str, Any]]] = []
        weakref.finalize(self, worker.released.append, self.number)

    # Asking

    def ask(self, op: str, parcel: Parcel | None = None, **content: Any) -> tuple[Any, list[Raw]]:
        """A request about this world; (result, the reply's tensors). Raises what the subject raised."""
        parcel = parcel or Parcel(TORCH)
        header: dict[str, Any] = {"op": op, "world": self.number, **content}
        if self.bases:
            header["bases"] = [base(parcel) for base in self.bases]
            self.bases = []
        if push := self._push(parcel):
            header["push"] = push
        reply, raws = self.worker.ask(header, parcel)
        self._make_sense(self.absorb, reply.get("state", {}), raws)
        raise_for(reply)
        return reply.get("result"), raws

    def _make_sense(self, read: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return read(*arguments)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, StopIteration) as error:
            raise self.worker.distrust(error) from error

    def invoke(self, method: str, *arguments: Any) -> Any:
        """A method of the subject, its answer's stand-in."""
        parcel = Parcel(TORCH)
        coded = [self.encoded(value, parcel) for value in arguments]
        result, raws = self.ask("invoke", parcel, method=method, arguments=coded)
        return self._make_sense(self.decoded, result, raws)

    # What was done here since

    def _push(self, parcel: Parcel) -> dict[str, Any]:
        storages = []
        for number, memory in self.memories.items():
            now = memory.bytes()
            if now != memory.said:
                memory.said = now
                storages.append([number, parcel.add_bytes(now)])
        push = {"storages": storages, **self._pushed_flags(parcel), "children": list(self._pushed_children())}
        return {key: value for key, value in push.items() if value}

    def _pushed_flags(self, parcel: Parcel) -> dict[str, Any]:
        grads, replaced = [], []
        for number, tensor in self.tensors.items():
            told = self.told[number]
            if tensor.requires_grad != told["requires_grad"]:
                told["requires_grad"] = tensor.requires_grad
                grads.append([number, tensor.requires_grad])
            memory = self.memories.get(told["storage"])
            if memory is not None and tensor.untyped_storage().data_ptr() != memory.storage.data_ptr():
                replaced.append([number, parcel.add(tensor)])
        training = []
        for number, flag in self.flags.items():
            now = self.modules[number].training
            if now != flag:
                self.flags[number] = now
                training.append([number, now])
        return {"requires_grad": grads, "tensors": replaced, "training": training}

    def _pushed_children(self) -> Iterator[list[Any]]:
        for number, known in self.children.items():
            there = self.modules[number]._modules
            for name, child in there.items():
                if known.get(name) is not child:
                    known[name] = child
                    yield [number, name, None if child is None else self.number_of(child)]

    # What was done there since

    def absorb(self, state: dict[str, Any], raws: list[Raw]) -> None:
        """Bring the stand-ins into step with a reply."""
        for number, place in state.get("storages", ()):
            self._absorb_storage(number, raws[place].data)
        for number, told in state.get("tensors", ()):
            self._absorb_tensor(number, told)
        described = state.get("modules", ())
        for number, told in described:
            if number not in self.modules:
                self._adopt(number, _blank(told))
        for number, told in described:
            self._absorb_module(number, told)
        for number, name, view in state.get("slots", ()):
            self.views[number, name] = view

    def _absorb_storage(self, number: int, data: bytes) -> None:
        memory = self.memories.get(number)
        if memory is None or memory.storage.nbytes() != len(data):
            memory = Memory(torch.empty(len(data), dtype=torch.uint8).untyped_storage(), data)
            self.memories[number] = memory
        if data:
            ctypes.memmove(memory.storage.data_ptr(), data, len(data))
        memory.said = data

    def _absorb_tensor(self, number: int, told: dict[str, Any]) -> None:
        known, tensor = self.told.get(number), self.tensors.get(number)
        self.told[number] = told
        if tensor is None:
            value = self._laid_out(told)
            grad = bool(told["requires_grad"])
            self.tensors[number] = (
                nn.Parameter(value, requires_grad=grad)
                if told["kind"] == "parameter"
                else value.requires_grad_(grad)
            )
            return
        if known is None or any(
            known[k] != told[k] for k in ("storage", "dtype", "shape", "stride", "offset")
        ):
            tensor.grad = None
            tensor.data = self._laid_out(told)
        tensor.requires_grad_(bool(told["requires_grad"]))

    def _laid_out(self, told: dict[str, Any]) -> Tensor:
        dtype = getattr(torch, told["dtype"])
        if told["storage"] is None:
            return torch.empty(told["shape"], dtype=dtype, device="meta")
        storage = self.memories[told["storage"]].storage
        return torch.empty(0, dtype=dtype).set_(storage, told["offset"], told["shape"], told["stride"])

    def _absorb_module(self, number: int, told: dict[str, Any]) -> None:
        module = self.modules[number]
        kind = self.kinds[number] if number in self.kinds else _ancestor(told["bases"])
        wanted = kind if told["plain"] else mirror_of(kind, told["class"])  # type: ignore[arg-type]
        own = module.__dict__  # past nn.Module's own __setattr__, which looks for parameters
        if type(module) is not wanted:
            object.__setattr__(module, "__class__", wanted)
        own.update({k: v for k, v in told["attributes"].items() if not k.startswith("_")})
        self.flags[number] = own["training"] = bool(told["training"])
        (self.trains.add if told["trains"] else self.trains.discard)(number)
        tables = (("_parameters", told["parameters"]), ("_buffers", told["buffers"]))
        for table, entries in tables:
            _refill(own[table], {e[0]: None if e[1] is None else self.tensors[e[1]] for e in entries})
        own["_non_persistent_buffers_set"] = {e[0] for e in told["buffers"] if not e[2]}
        children = {name: None if child is None else self.modules[child] for name, child in told["children"]}
        _refill(module._modules, children)
        self.children[number] = children

    # Modules that come from here

    def number_of(self, module: nn.Module) -> int:
        """The number of a module; one that is not known yet goes along with the next request."""
        link = module.__dict__.get(LINK)
        if link is not None and link.world is self:
            return int(link.number)
        return self.include(module)

    def include(self, module: nn.Module) -> int:
        """Send a module along with the next request. Raises Unsupported where it cannot be built there."""
        recipe, numbers = recipe_of(module), {}
        modules = []
        for path, each in module.named_modules(remove_duplicate=False):
            if id(each) not in numbers:
                numbers[id(each)] = self._adopt(-next(self.worker.numbers), each)
                self.kinds[numbers[id(each)]] = type(each)
                self.flags[numbers[id(each)]] = each.training
                self.children[numbers[id(each)]] = dict(each._modules)
            modules.append([path, numbers[id(each)]])
        if (origin := quantised_from(module)) is not None:
            self.bases.append(functools.partial(_quantised_base, recipe, modules, origin))
            return numbers[id(module)]
        found = list(self._include_tensors(module))
        evaluating = [n for n in numbers.values() if not self.modules[n].training]
        leaves = [n for n in numbers.values() if has_leaf_output(self.modules[n])]

        def base(parcel: Parcel) -> dict[str, Any]:
            tensors = []
            places: dict[int, int] = {}
            for path, number, is_parameter in found:
                if number not in places:
                    memory, tensor = self.memories[number], self.tensors[number]
                    places[number] = parcel.add(tensor)
                    memory.said = memory.bytes()
                tensors.append([path, number, places[number], tensor.requires_grad, is_parameter])
            built = {"recipe": recipe, "modules": modules, "tensors": tensors, "evaluating": evaluating}
            return {**built, "leaves": leaves} if leaves else built

        self.bases.append(base)
        return numbers[id(module)]

    def _include_tensors(self, module: nn.Module) -> Iterator[tuple[str, int, bool]]:
        known = {id(t): n for n, t in self.tensors.items()}
        parameters = module.named_parameters(remove_duplicate=False)
        buffers = module.named_buffers(remove_duplicate=False)
        for named, is_parameter in ((parameters, True), (buffers, False)):
            for path, tensor in named:
                if type(tensor.data) is not Tensor:  # a quantised weight has no storage of its own
                    raise Unsupported(
                        f"a {type(tensor.data).__name__} cannot be sent to the subject's process"
                    )
                if id(tensor) not in known:
                    number = known[id(tensor)] = -next(self.worker.numbers)
                    self.tensors[number] = tensor
                    self._lay_down(number, tensor)
                yield path, known[id(tensor)], is_parameter

    def _lay_down(self, number: int, tensor: Tensor) -> None:
        if (
            not tensor.is_contiguous()
            or tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
        ):
            tensor.data = tensor.data.contiguous().clone()
        self.memories[number] = Memory(tensor.untyped_storage(), b"")
        kind = "parameter" if isinstance(tensor, nn.Parameter) else "tensor"
        self.told[number] = {
            "storage": number, "dtype": str(tensor.dtype)[6:], "shape": list(tensor.shape),
            "stride": list(tensor.stride()), "offset": 0, "requires_grad": tensor.requires_grad, "kind": kind,
        }  # fmt: skip

    def _adopt(self, number: int, module: nn.Module) -> int:
        module.__dict__[LINK] = Link(self, number)
        self.modules[number] = module
        return number

    # Values

    def encoded(self, value: Any, parcel: Parcel, inputs: list[Tensor] | None = None) -> Any:
        """A value for a request; ``inputs`` collects the tensors of a call. Raises TypeError for what cannot go."""
        if isinstance(value, Tensor):
            place = {"tensor": parcel.add(value)}
            if inputs is None:
                return place
            inputs.append(value)
            flows = value.requires_grad and torch.is_grad_enabled()
            return {**place, "flows": flows, "derived": value.grad_fn is not None}
        if isinstance(value, nn.Module):
            return {"known": self.number_of(value)}
        if isinstance(value, RemoteAdapted):
            return {"adapted": value.number}
        if isinstance(value, AdapterSpec):
            return {"spec": spec_told(value)}
        if isinstance(value, Path):
            return {"path": str(value)}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value)[6:]}
        if isinstance(value, tuple):
            return {"tuple": [self.encoded(part, parcel, inputs) for part in value]}
        if isinstance(value, list):
            return [self.encoded(part, parcel, inputs) for part in value]
        if isinstance(value, Mapping):
            return {"mapping": [[k, self.encoded(v, parcel, inputs)] for k, v in value.items()]}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"a {type(value).__name__} cannot be sent to the subject's process")

    def decoded(self, value: Any, raws: list[Raw], outputs: Iterator[Tensor] | None = None) -> Any:
        """A value from a reply; ``outputs``: the tensors to put where tensors stand."""
        if not isinstance(value, dict):
            return value
        if "adapted" in value:
            return self._adapted(value, raws)
        if "mapping" in value:
            content = {k: self.decoded(v, raws, outputs) for k, v in value["mapping"]}
            return content if value.get("class") == "dict" else Answer(content)
        ((kind, content),) = value.items()
        if kind == "tensor":
            return TORCH.tensor(raws[content]) if outputs is None else next(outputs)
        if kind == "known":
            return self.tensors[content]
        if kind == "module":
            return self.modules[content]
        if kind == "spec":
            return AdapterSpec(**content)
        if kind == "path":
            return Path(content)
        if kind == "dtype":
            return getattr(torch, content)
        if kind in ("tuple", "list"):
            parts = [self.decoded(part, raws, outputs) for part in content]
            return tuple(parts) if kind == "tuple" else parts
        return opaque(content)

    def _adapted(self, told: dict[str, Any], raws: list[Raw]) -> Adapted:
        number, module = told["adapted"], self.decoded(told["module"], raws)
        if "failed" in told:
            return RemoteAdapted(module, BadSlots(told["failed"]), self, number)
        slots = {name: self._slot(number, name, slot) for name, slot in told["slots"]}
        return RemoteAdapted(module, slots, self, number)

    def _slot(self, adapted: int, name: str, told: dict[str, Any]) -> Any:
        if "live" not in told:
            return opaque(told["opaque"]) if "opaque" in told else Slot(opaque(told["holds"]))
        tensor = self.tensors[told["live"]]
        if "computed" in told:
            ask = functools.partial(self._computed, adapted, name)
            write, gradient = told["computed"]
            return Slot(
                tensor,
                read=lambda live: ask("read", live=live),
                write=(lambda live, value: live.copy_(ask("write", live=live, value=value)))
                if write
                else None,
                gradient=(lambda grad: ask("gradient", value=grad)) if gradient else None,
            )
        return Slot(
            tensor, identity if told["whole"] else functools.partial(self._view, adapted, name, told["live"])
        )

    def _computed(self, adapted: int, name: str, action: str, **tensors: Tensor) -> Any:
        """What the slot makes of these tensors, whose own live tensor need not be theirs: a copy's slot is it, too."""
        parcel = Parcel(TORCH)
        content = {key: parcel.add(tensor.detach()) for key, tensor in tensors.items()}
        result, raws = self.ask("slot", parcel, adapted=adapted, slot=name, action=action, **content)
        return self._make_sense(self.decoded, result, raws)

    def _view(self, adapted: int, name: str, number: int, tensor: Tensor) -> Any:
        """The canonical view as the worker last saw it, of the live tensor or of a gradient of its shape."""
        told = self.views.get((adapted, name))
        if told is None:
            return tensor
        if "failed" in told:
            raise exception_of(told["failed"])
        if "opaque" in told:
            return opaque(told["opaque"])
        if tensor is self.tensors[number] and not told["copy"]:
            return tensor.as_strided(told["shape"], told["stride"], told["offset"])
        if told["entries"] is None:
            return torch.zeros(told["shape"], dtype=getattr(torch, told["dtype"]))
        shape, stride, offset = told["entries"]
        found = tensor.contiguous().as_strided(shape, stride, offset + tensor.storage_offset())
        return found.to(getattr(torch, told["dtype"])).clone() if told["copy"] else found

    # Calling

    def call(
        self,
        module: nn.Module,
        arguments: tuple[Any, ...],
        named: Mapping[str, Any],
        graphs: Graphs | None = None,
    ) -> Any:
        """``module(*arguments, **named)`` there, joined to the graph here; with ``graphs`` the compiled module."""
        parcel, inputs, number = Parcel(TORCH), list[Tensor](), next(self.worker.numbers)
        coded = {
            "module": self.number_of(module),
            "arguments": [self.encoded(a, parcel, inputs) for a in arguments],
            "named": {k: self.encoded(v, parcel, inputs) for k, v in named.items()},
        }
        if graphs is not None:
            coded["compiled"] = graphs.number
        result, raws = self.ask("call", parcel, call=number, **coded)
        if graphs is not None:
            graphs.count = int(result.get("graphs", 0))
        return self._make_sense(self._answer, number, result, raws, inputs)

    def _answer(self, call: int, result: dict[str, Any], raws: list[Raw], inputs: list[Tensor]) -> Any:
        outputs: list[Tensor] = []
        _tensors(result["value"], raws, outputs)
        with torch.no_grad():
            for i, place in result.get("written", ()):
                inputs[i].copy_(TORCH.tensor(raws[place]))
        if any(result["flows"]) and torch.is_grad_enabled():
            outputs = list(self._joined(call, outputs, result["flows"], inputs))
        return self.decoded(result["value"], raws, iter(outputs))

    def _joined(
        self, call: int, outputs: list[Tensor], flows: list[bool], inputs: list[Tensor]
    ) -> Iterable[Tensor]:
        leaves = {n: t for n, t in self.tensors.items() if t.requires_grad}
        held = Call(self, call, outputs, flows, list(leaves), len(inputs))
        given = [*inputs, *leaves.values()]
        if not any(t.requires_grad for t in given):
            given.append(
                torch.zeros((), requires_grad=True)
            )  # what it flows to there is not to be seen from here
        found: tuple[Tensor, ...] = RemoteCall.apply(held, *given)
        return found

    def copied(self, module: nn.Module, memo: dict[int, Any], how: str = "deepcopy") -> nn.Module:
        """A deep copy of a module, or one that was pickled and unpickled, there and here."""
        twin = World(self.worker)
        result, _ = self._ask_into(twin, module, how)
        for old, new in result["twins"]:
            for mine, theirs in ((self.tensors, twin.tensors), (self.modules, twin.modules)):
                if old in mine and new in theirs:
                    memo[id(mine[old])] = theirs[new]
        return twin.modules[result["module"]]

    def _ask_into(self, twin: World, module: nn.Module, how: str) -> tuple[Any, list[Raw]]:
        parcel = Parcel(TORCH)
        header = {"op": "copy", "how": how, "world": self.number, "into": twin.number}
        header["module"] = self.number_of(module)
        reply, raws = self.worker.ask({**header, "push": self._push(parcel)}, parcel)
        twin._make_sense(twin.absorb, reply.get("state", {}), raws)
        raise_for(reply)
        return reply["result"], raws


def _tensors(value: Any, raws: list[Raw], found: list[Tensor]) -> None:
    """The tensors in a value, in the order in which they stand."""
    if isinstance(value, dict):
        if "tensor" in value:
            found.append(TORCH.tensor(raws[value["tensor"]]))
        for part in value.get("tuple", ()) or value.get("list", ()):
            _tensors(part, raws, found)
        for _, part in value.get("mapping", ()):
            _tensors(part, raws, found)


def spec_told(spec: AdapterSpec) -> dict[str, Any]:
    """A spec for a message."""
    return {name: getattr(spec, name) for name in AdapterSpec.__dataclass_fields__} | {
        "options": dict(spec.options)
    }


def _refill(table: dict[str, Any], entries: dict[str, Any]) -> None:
    table.clear()
    table.update(entries)


class Answer(OrderedDict[str, Any]):
    """What a model answers with: entries that are attributes too, as in transformers' ``ModelOutput``."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass
class Call:
    """A call whose graph the worker keeps for as long as this lives."""

    world: World
    number: int
    outputs: list[Tensor]
    flows: list[bool]
    leaves: list[int]
    inputs: int

    def __post_init__(self) -> None:
        weakref.finalize(self, self.world.worker.released.append, self.number)

    def gradients(self, result: dict[str, Any], raws: list[Raw]) -> list[Tensor | None]:
        """What a backward request answered, for the inputs and then the tensors that this call depends on."""
        of_tensors = dict(result["tensors"])
        found = [*result["inputs"], *(of_tensors.get(n) for n in self.leaves)]
        return [None if place is None else TORCH.tensor(raws[place]) for place in found]


class RemoteCall(torch.autograd.Function):
    """Outputs that were computed there, their gradients asked for there."""

    @staticmethod
    def forward(ctx: Any, held: Call, *given: Tensor) -> tuple[Tensor, ...]:
        """The outputs of ``held``, depending on its inputs and on the world's trainable tensors."""
        ctx.held = held
        ctx.set_materialize_grads(False)
        outputs, held.outputs = held.outputs, []
        ctx.mark_non_differentiable(*(y for y, flows in zip(outputs, held.flows, strict=True) if not flows))
        return tuple(outputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """∂L/∂inputs and ∂L/∂tensors, from ∂L/∂outputs."""
        held: Call = ctx.held
        parcel = Parcel(TORCH)
        places = [None if g is None else parcel.add(g) for g in gradients]
        result, raws = held.world.ask("backward", parcel, call=held.number, gradients=places)
        wanted = len(ctx.needs_input_grad) - 1
        found: list[Tensor | None] = held.world._make_sense(held.gradients, result, raws)
        return (None, *[*found, *[None] * wanted][:wanted])


# Classes of stand-ins


class Mirror:
    """What a module that computes there has in place of its own methods."""

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """The worker's answer."""
        return _link(self).world.call(self, arguments, named)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)  # type: ignore[misc]
        except AttributeError:
            if name.startswith("_") or self.__dict__.get(LINK) is None:
                raise
            return self._remotely("attribute", name=name)

    def _remotely(self, op: str, **content: Any) -> Any:
        link = _link(self)
        result, raws = link.world.ask(op, module=link.number, **content)
        return link.world._make_sense(link.world.decoded, result, raws)

    def _method(self, method: str, *arguments: Any, **named: Any) -> Any:
        world, parcel = _link(self).world, Parcel(TORCH)
        coded = [world.encoded(a, parcel) for a in arguments]
        also = {k: world.encoded(v, parcel) for k, v in named.items()}
        result, raws = world.ask(
            "method", parcel, module=_link(self).number, method=method, arguments=coded, named=also
        )
        return world._make_sense(world.decoded, result, raws)

    def train(self, mode: bool = True) -> Any:
        """``train`` there, where a library has its own (it merges and unmerges in it); else flags that go there."""
        if _link(self).number in _link(self).world.trains:
            return super().train(mode)  # type: ignore[misc]
        return self._method("train", mode)

    def eval(self) -> Any:
        """``eval`` there, where a library has its own or its own ``train``."""
        if _link(self).number in _link(self).world.trains:
            return super().eval()  # type: ignore[misc]
        return self._method("eval")

    def to(self, *arguments: Any, **named: Any) -> Any:
        """``to`` there."""
        return self._method("to", *arguments, **named)

    def double(self) -> Any:
        """``double`` there."""
        return self._method("double")

    def float(self) -> Any:
        """``float`` there."""
        return self._method("float")

    def half(self) -> Any:
        """``half`` there."""
        return self._method("half")

    def bfloat16(self) -> Any:
        """``bfloat16`` there."""
        return self._method("bfloat16")

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """``requires_grad_`` there."""
        return self._method("requires_grad_", requires_grad)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """``load_state_dict`` there."""
        return self._method("load_state_dict", dict(state_dict), strict=strict, assign=assign)

    def state_dict(self, *, prefix: str = "", keep_vars: bool = False, **more: Any) -> OrderedDict[str, Any]:
        """``state_dict`` there; the tensors are the stand-ins."""
        world = _link(self).world
        result, raws = world.ask("state_dict", module=_link(self).number, prefix=prefix)
        found = OrderedDict((name, world._make_sense(world.decoded, value, raws)) for name, value in result)
        if keep_vars:
            return found
        return OrderedDict((k, v.detach() if isinstance(v, Tensor) else v) for k, v in found.items())

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _link(self).world.copied(self, memo)  # type: ignore[arg-type]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A pickle holds the name of a copy that was pickled and unpickled there; no bytes of it come here."""
        copy = _link(self).world.copied(self, {}, "pickle")  # type: ignore[arg-type]
        REVIVED[id(copy)] = copy
        return _revived, (id(copy),)

    def compiled_there(self, backend: str) -> tuple[Callable[..., Any], Graphs]:
        """The module under ``torch.compile`` there, and how many graphs have been compiled so far."""
        world = _link(self).world
        graphs = Graphs(next(world.worker.numbers))
        world.ask("compile", module=_link(self).number, backend=backend, compiled=graphs.number)
        return lambda *arguments: world.call(self, arguments, {}, graphs), graphs  # type: ignore[arg-type]


@dataclass
class Graphs:
    """A compiled module there by its number, and how many graphs were compiled for it."""

    number: int
    count: int = 0


REVIVED: dict[int, nn.Module] = {}


def _revived(key: int) -> nn.Module:
    """The copy behind a pickle that was made in this process, once."""
    return REVIVED.pop(key)


def _link(module: Any) -> Link:
    link: Link | None = module.__dict__.get(LINK)
    if link is None:
        raise SubjectDied("the subject's process is gone")
    return link


@functools.cache
def mirror_of(kind: type[nn.Module], name: str) -> type[nn.Module]:
    """A stand-in class for ``kind`` that goes by the name of the class there."""
    return type(name[:100], (Mirror, kind), {"__module__": kind.__module__})


@functools.cache
def _from_torch(qualified: str) -> type[nn.Module] | None:
    """A module class of torch's own by its full name; None for any other, and for those that keep own books."""
    module, _, name = qualified.rpartition(".")
    if not module.startswith("torch.nn.") or name.startswith(("Parameter", "Buffer", "Lazy")):
        return None
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None
    return found if isinstance(found, type) and issubclass(found, nn.Module) else None


def _ancestor(bases: list[str]) -> type[nn.Module]:
    """The class of torch's own that a class there descends from."""
    return next((kind for name in bases if (kind := _from_torch(str(name)))), nn.Module)


def _blank(told: dict[str, Any]) -> nn.Module:
    """An empty stand-in; what is in it follows."""
    kind = _ancestor(told["bases"])
    module: nn.Module = kind.__new__(kind)
    nn.Module.__init__(module)
    return module
