"""Hostile subjects: LoRA done right but for one thing that no library should do to the one who calls it."""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot, Unsupported
from tests.subjects import wrapped


@dataclass(frozen=True)
class Hostile:
    """A subject, the check that meets it, how the claim must end, and a few words of its sentence."""

    name: str
    make: Callable[[], Implementation]
    check: str
    outcome: str
    words: str


HOSTILE: list[Hostile] = []
FORWARD = "forward.random_parameters"


def hostile(check: str, outcome: str, words: str) -> Callable[[type], type]:
    """Register a library, or a layer that a library then uses."""

    def register(cls: type) -> type:
        is_layer = issubclass(cls, nn.Module)
        make = (lambda: wrapped.Library({"lora": cls})) if is_layer else cls
        HOSTILE.append(Hostile(cls.__name__, make, check, outcome, words))
        return cls

    return register


class Lib(wrapped.Library):
    """LoRA alone."""

    name = "hostile"
    variants = frozenset({"lora"})


# --- raises


@hostile(FORWARD, "unverified", "raised ZeroDivisionError in adapt: because")
class RaisesInAdapt(Lib):
    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        raise ZeroDivisionError("because")


@hostile(FORWARD, "error", "raised RuntimeError in module(x)")
class RaisesInForward(wrapped.Lora):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("because")


class _Refuses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise RuntimeError("no gradients here")


@hostile("forward.gradients", "error", "no gradients here")
class RaisesInBackward(wrapped.Lora):
    def forward(self, x: Tensor) -> Tensor:
        return _Refuses.apply(super().forward(x))


@hostile("training.sgd", "error", "no gradients here")
class RaisesInTraining(RaisesInBackward):
    pass


@hostile("save_load.round_trip", "unverified", "raised OSError in save")
class RaisesInSave(Lib):
    def save(self, adapted: Adapted, path: Path) -> None:
        raise OSError("disk full")


@hostile("save_load.round_trip", "unverified", "raised KeyError in load")
class RaisesInLoad(Lib):
    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Adapted:
        raise KeyError("A")


@hostile("merge.weight", "unverified", "raised AttributeError in merge")
class RaisesInMerge(Lib):
    def merge(self, adapted: Adapted) -> nn.Linear:
        return adapted.merge()


@hostile("merge.detach", "unverified", "raised TypeError in detach")
class RaisesInDetach(Lib):
    def detach(self, adapted: Adapted) -> nn.Linear:
        raise TypeError("detach")


@hostile(FORWARD, "unverified", "in reading slot 'A'")
class RaisesInViewLater(Lib):
    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        adapted = super().adapt(base, spec)

        def view(t: Tensor) -> Tensor:
            raise IndexError("view")

        return Adapted(adapted.module, {**adapted.slots, "A": Slot(adapted.slots["A"].tensor, view)})


class UnprintableError(Exception):
    """Raises again when it is turned into text."""

    def __str__(self) -> str:
        raise ValueError("no text")


@hostile(FORWARD, "error", "raised UnprintableError")
class RaisesUnprintable(wrapped.Lora):
    def forward(self, x: Tensor) -> Tensor:
        raise UnprintableError


@hostile(FORWARD, "error", "raised RuntimeError in module(x)")
class RaisesAtLength(wrapped.Lora):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("\x1b[31m|`<script>\n" * 100_000)


@hostile(FORWARD, "error", "cannot handle <object object at 0x...>")
class RaisesWithAddress(wrapped.Lora):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError(f"cannot handle {object()}")


@hostile(FORWARD, "error", "RecursionError")
class Recurses(wrapped.Lora):
    def forward(self, x: Tensor) -> Tensor:
        return self.forward(x)


@hostile(FORWARD, "error", "sys.exit")
class ExitsInAdapt(Lib):
    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        sys.exit(3)


@hostile(FORWARD, "error", "sys.exit")
class ExitsInForward(wrapped.Lora):
    def forward(self, x: Tensor) -> Tensor:
        raise SystemExit("bye")


@hostile("save_load.round_trip", "error", "sys.exit")
class ExitsInSave(Lib):
    def save(self, adapted: Adapted, path: Path) -> None:
        sys.exit()


class OddError(BaseException):
    """Not an Exception."""


@hostile(FORWARD, "error", "OddError")
class RaisesBaseException(wrapped.Lora):
    def forward(self, x: Tensor) -> Tensor:
        raise OddError("odd")


@hostile(FORWARD, "error", "GeneratorExit")
class RaisesGeneratorExit(wrapped.Lora):
    def forward(self, x: Tensor) -> Tensor:
        raise GeneratorExit


@hostile(FORWARD, "error", "memory")
class EatsMemory(wrapped.Lora):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.empty(1 << 46).sum()


@hostile(FORWARD, "error", "MemoryError")
class EatsPythonMemory(wrapped.Lora):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + len(bytearray(1 << 60))


# --- answers that are none


@hostile(FORWARD, "unverified", "returned NoneType")
class AdaptsToNone(Lib):
    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Any:
        super().adapt(base, spec)


@hostile(FORWARD, "unverified", "expected an nn.Module")
class NotAModule(Lib):
    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        adapted = super().adapt(base, spec)
        return Adapted(lambda x: adapted.module(x), adapted.slots)  # type: ignore[arg-type]


@hostile(FORWARD, "unverified", "slots is empty")
class NoSlots(Lib):
    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        return Adapted(super().adapt(base, spec).module, {})


@hostile(FORWARD, "unverified", "slot 'A' holds a str")
class SlotOfText(Lib):
    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        adapted = super().adapt(base, spec)
        return Adapted(adapted.module, {**adapted.slots, "A": Slot("A")})  # type: ignore[arg-type]


@hostile(FORWARD, "unverified", "slot 'A'")
class SlotsOfTensors(Lib):
    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        adapted = super().adapt(base, spec)
        return Adapted(adapted.module, {n: s.tensor for n, s in adapted.slots.items()})  # type: ignore[misc]


@hostile(FORWARD, "unverified", "slot")
class SlotsByNumber(Lib):
    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        adapted = super().adapt(base, spec)
        return Adapted(adapted.module, dict(enumerate(adapted.slots.values())))  # type: ignore[arg-type]


@hostile(FORWARD, "unverified", "does not share storage")
class ViewCopies(Lib):
    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        adapted = super().adapt(base, spec)
        copied = Slot(adapted.slots["A"].tensor, lambda t: t.clone())
        return Adapted(adapted.module, {**adapted.slots, "A": copied})


@hostile(FORWARD, "unverified", "a copy")
class SlotsAreCopies(Lib):
    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        adapted = super().adapt(base, spec)
        return Adapted(adapted.module, {n: Slot(s.tensor.detach().clone()) for n, s in adapted.slots.items()})


@hostile(FORWARD, "unverified", "slot 'A' is no tensor of the module")
class OneSlotIsACopy(Lib):
    """A's slot is a copy, B's is live: writes to A change nothing."""

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        adapted = super().adapt(base, spec)
        copied = nn.Parameter(adapted.slots["A"].tensor.detach().clone())
        return Adapted(adapted.module, {**adapted.slots, "A": Slot(copied)})


@hostile(FORWARD, "unverified", "returned NoneType")
class ReturnsNone(wrapped.Lora):
    def forward(self, x: Tensor) -> Any:
        super().forward(x)


@hostile(FORWARD, "unverified", "returned tuple")
class ReturnsTuple(wrapped.Lora):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), None


@hostile(FORWARD, "unverified", "shape")
class WrongShape(wrapped.Lora):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sum(-1)


@hostile(FORWARD, "fail", "output")
class ReturnsNaN(wrapped.Lora):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * float("nan")


@hostile(FORWARD, "fail", "output")
class ReturnsInfinity(wrapped.Lora):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + float("inf")


@hostile("dtype.output", "fail", "dtype")
class ReturnsDouble(wrapped.Lora):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).double()


@hostile("dtype.output", "fail", "dtype")
class ReturnsComplex(wrapped.Lora):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).float().to(torch.complex64)


@hostile(FORWARD, "unverified", "meta device")
class ReturnsMeta(wrapped.Lora):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to("meta")


@hostile("forward.gradients", "fail", "gradient")
class WholeNumbers(wrapped.Lora):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).round().detach()


@hostile("merge.weight", "unverified", "the subject file, not the library behind it: merge returned NoneType")
class MergesToNone(Lib):
    def merge(self, adapted: Adapted) -> Any:
        super().merge(adapted)


@hostile("merge.weight", "fail", "merged weight")
class MergesToShapeless(Lib):
    def merge(self, adapted: Adapted) -> nn.Linear:
        layer = super().merge(adapted)
        layer.weight = nn.Parameter(layer.weight.detach().flatten())
        return layer


@hostile("save_load.round_trip", "unverified", "returned NoneType")
class LoadsNone(Lib):
    def load(self, base: nn.Linear, spec: AdapterSpec, path: Path) -> Any:
        super().load(base, spec, path)


@hostile("save_load.round_trip", "unverified", "No such file or directory: saved/adapter")
class SavesNothing(Lib):
    def save(self, adapted: Adapted, path: Path) -> None:
        pass


# --- changes what is not its own


@hostile("forward.pure", "fail", "the input after a call")
class MutatesInput(wrapped.Lora):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        x.data.zero_()
        return y


@hostile("init.base_weight", "fail", "base weight")
class MutatesBase(wrapped.Lora):
    def build(self) -> None:
        super().build()
        self.base.weight.data += 1e-3


@hostile("forward.pure", "fail", "tensors changed by a call")
class MutatesBaseInForward(wrapped.Lora):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.base.weight.data *= 1.0001
        return y


@hostile("forward.pure", "fail", "generator")
class DrawsInForward(wrapped.Lora):
    def forward(self, x: Tensor) -> Tensor:
        torch.rand(1)
        return super().forward(x)


@hostile("init.seeded", "fail", "from two seeds")
class SeedsInAdapt(wrapped.Lora):
    def build(self) -> None:
        torch.manual_seed(0)
        super().build()


@hostile("forward.pure", "fail", "generator")
class SeedsInForward(wrapped.Lora):
    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(1)
        return super().forward(x)


@hostile(FORWARD, "error", "default dtype")
class ChangesDefaultDtype(wrapped.Lora):
    def forward(self, x: Tensor) -> Tensor:
        torch.set_default_dtype(torch.float16)
        return super().forward(x)


@hostile(FORWARD, "error", "gradient mode")
class TurnsGradientsOff(wrapped.Lora):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        torch.set_grad_enabled(False)
        return y


@hostile(FORWARD, "error", "thread count")
class ChangesThreads(wrapped.Lora):
    def forward(self, x: Tensor) -> Tensor:
        torch.set_num_threads(torch.get_num_threads() + 1)
        return super().forward(x)


@hostile(FORWARD, "error", "working directory")
class ChangesDirectory(wrapped.Lora):
    def forward(self, x: Tensor) -> Tensor:
        os.chdir(tempfile.gettempdir())
        return super().forward(x)


@hostile(FORWARD, "error", "working directory")
class RemovesDirectory(wrapped.Lora):
    def forward(self, x: Tensor) -> Tensor:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
        return super().forward(x)


@hostile(FORWARD, "error", "deterministic")
class TurnsDeterminismOn(wrapped.Lora):
    def forward(self, x: Tensor) -> Tensor:
        torch.use_deterministic_algorithms(True)
        return super().forward(x)


@hostile(FORWARD, "fail", "output")
class LeaksGlobalHook(wrapped.Lora):
    """Doubles the output of every nn.Linear there is, the reference's too."""

    def build(self) -> None:
        super().build()

        def double(module: nn.Module, args: Any, y: Any) -> Any:
            return y * 2 if isinstance(module, nn.Linear) else y

        register_module_forward_hook(double)


@hostile(FORWARD, "error", "autocast")
class LeavesAutocastOn(wrapped.Lora):
    def forward(self, x: Tensor) -> Tensor:
        torch.set_autocast_enabled("cpu", True)
        return super().forward(x)


@hostile(FORWARD, "error", "environment")
class ChangesEnvironment(wrapped.Lora):
    def forward(self, x: Tensor) -> Tensor:
        os.environ["HF_HUB_OFFLINE"] = "surprise"
        return super().forward(x)


@hostile("save_load.round_trip", "fail", "side-effect.txt")
class WritesElsewhere(Lib):
    def save(self, adapted: Adapted, path: Path) -> None:
        super().save(adapted, path)
        (path.parent.parent / "side-effect.txt").write_text("here", encoding="utf-8")


# --- time and chance


@hostile(FORWARD, "error", "no answer within")
class Hangs(wrapped.Lora):
    def forward(self, x: Tensor) -> Tensor:
        while True:
            time.sleep(0.01)


@hostile(FORWARD, "error", "no answer within")
class HangsInAdapt(Lib):
    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        for _ in itertools.count():
            pass
        raise AssertionError


@hostile("save_load.round_trip", "error", "no answer within")
class HangsInSave(Lib):
    def save(self, adapted: Adapted, path: Path) -> None:
        time.sleep(3600)


@hostile(FORWARD, "error", "no answer within")
class HangsAndHolds(wrapped.Lora):
    """Swallows whatever is thrown at it, a few times."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            try:
                time.sleep(3600)
            except BaseException:
                continue
        time.sleep(3600)
        return super().forward(x)


@hostile("forward.pure", "fail", "same call twice")
class Differs(wrapped.Lora):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1e-3 * float(np.random.default_rng().random())


class WrongNowAndThen(Lib):
    """Every fifth layer is broken, from the third on."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        adapted = super().adapt(base, spec)
        self.count += 1
        if self.count % 5 == 3:
            adapted.module.forward = lambda x: adapted.module.base(x) + 1
        return adapted


HOSTILE.append(Hostile("WrongNowAndThen", WrongNowAndThen, FORWARD, "error", "differently"))


class _Doubled(wrapped.Lora):
    s = 3.7


# --- says no too often


@hostile(FORWARD, "not_applicable", "nothing")
class AlwaysUnsupported(Lib):
    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        raise Unsupported("nothing is offered")


@hostile(FORWARD, "fail", "output")
class WrongAndPicky(Lib):
    """Wrong, and without float64: what it lacks may not hide what it gets wrong."""

    def __init__(self) -> None:
        super().__init__({"lora": _Doubled})

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        if base.weight.dtype == torch.float64:
            raise Unsupported("float64 is not offered")
        return super().adapt(base, spec)


@hostile(FORWARD, "fail", "output")
class WrongAndPickyAboutBias(WrongAndPicky):
    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        if base.bias is None:
            raise Unsupported("layers without bias are not offered")
        return wrapped.Library.adapt(self, base, spec)


@hostile(FORWARD, "fail", "output")
class WrongAndPickyInForward(Lib):
    def __init__(self) -> None:
        super().__init__({"lora": _DoubledPicky})


class _DoubledPicky(_Doubled):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] == 2:
            raise Unsupported("two rows are not offered")
        return super().forward(x)


class Mean(Mapping[str, Slot]):
    """Slots that raise when they are looked at."""

    def __getitem__(self, key: str) -> Slot:
        raise LookupError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(("A", "B"))

    def __len__(self) -> int:
        return 2


@hostile(FORWARD, "error", "in the slots of adapt's answer")
class MeanSlots(Lib):
    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        return Adapted(super().adapt(base, spec).module, Mean())
