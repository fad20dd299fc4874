"""Libraries that go wrong in the life of an adapter, one thing each, and the claim that must find it out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from oracles.implementation import Adapted, AdapterSpec, Implementation
from tests.subjects.lives import Adapter, Folded, Layer, Library, check


@dataclass(frozen=True)
class BrokenLife:
    """A wrong library: of which variant, the claim that finds it out, and the fault that the finding names."""

    name: str
    variant: str
    make: Callable[[], Implementation]
    claim: str
    says: str  # the diagnosis' last word; empty where the check's own title is the sentence
    steps: int  # the most steps that its counterexample may have

    @property
    def what(self) -> str:
        """The class's docstring."""
        return str(self.make.__doc__).strip()


BROKEN_LIVES: list[BrokenLife] = []


def layer(variants: str, claim: str, says: str = "", steps: int = 4) -> Callable[[type[Layer]], type[Layer]]:
    """Register a layer that is wrong."""

    def register(cls: type[Layer]) -> type[Layer]:
        wrong = type(cls.__name__, (Library,), {"layer": cls, "__doc__": cls.__doc__})
        library(variants, claim, says, steps)(wrong)
        return cls

    return register


def library(variants: str, claim: str, says: str = "", steps: int = 4) -> Callable[[type], type]:
    """Register a library whose own methods are wrong."""

    def register(cls: type) -> type:
        for variant in variants.split():
            BROKEN_LIVES.append(BrokenLife(cls.__name__, variant, cls, f"lifecycle.{claim}", says, steps))
        return cls

    return register


# --- several adapters


@layer("lora delora", "others", "wiped")
class SecondWipesFirst(Layer):
    """Adding an adapter initialises all of them again."""

    def add(self, name: str, spec: AdapterSpec) -> None:
        super().add(name, spec)
        for adapter in self.adapters.values():
            fresh = Adapter(self.plain_weight(), adapter.spec)
            adapter.load_state_dict(fresh.state_dict())


@layer("lora", "output", "some_act")
class OnlyTheLastActs(Layer):
    """Of several active adapters only the last acts."""

    def acting(self) -> list:
        return super().acting()[-1:]


@layer("ia3", "output", "composed_otherwise")
class GatesAdd(Layer):
    """Two gates' changes are added, not multiplied."""

    def compose(self, active: list, W: Tensor, b: Tensor | None, x: Tensor) -> Tensor:
        base = nn.functional.linear(x, W, b)
        return base + sum(super(GatesAdd, self).compose([one], W, b, x) - base for one in active)


@layer("hra", "output", "reversed")
class ChainReversed(Layer):
    """The adapter that was added last is the one that meets x last."""

    def acting(self) -> list:
        return super().acting()[::-1]


@layer("lora", "output", "scale_of_another")
class OneScaleForAll(Layer):
    """The scale is the layer's, and each new adapter sets it."""

    def acting(self) -> list:
        last: Adapter = list(self.adapters.values())[-1]  # type: ignore[assignment]
        return [(tensors, last.spec) for tensors, _ in super().acting()]


@layer("dora", "output", "norm_of_another")
class NormOfWhatIsThere(Layer):
    """Each adapter's norm is taken of the weight that the one before it left."""

    def compose(self, active: list, W: Tensor, b: Tensor | None, x: Tensor) -> Tensor:
        for tensors, spec in active:
            V = W + spec.alpha / spec.rank * tensors["B"] @ tensors["A"]
            W = (tensors["m"] / V.norm(dim=1).detach())[:, None] * V
        return nn.functional.linear(x, W, b)


@layer("lora hra", "output", "deleted_acts")
class DeleteLeavesItActive(Layer):
    """The name goes, the adapter stays among those that act."""

    ghost: list | None = None

    def delete(self, name: str) -> None:
        if name in self.active:
            adapter = self.adapter(name)
            self.ghost = [(copy.deepcopy(adapter).tensors(), adapter.spec)]
        super().delete(name)

    def forward(self, x: Tensor) -> Tensor:
        if self.ghost and not self.merged:
            self.active = self.active or []
            return self.adapted(x)
        return super().forward(x)

    def acting(self) -> list:
        return [*super().acting(), *(self.ghost or [])]


@layer("lora", "output", "inactive_act")
class DisabledActInEvaluation(Layer):
    """Switching adapters off is for training; in evaluation the first one acts again."""

    def forward(self, x: Tensor) -> Tensor:
        if self.active or self.training or self.merged or "adapter_default" not in self.adapters:
            return super().forward(x)
        self.active = ["default"]
        y = self.adapted(x)
        self.active = []
        return y


@layer("lora hra", "output", "other_acts")
class OneOfThemActs(Layer):
    """Whichever one adapter is asked for, the one that was added last acts."""

    def acting(self) -> list:
        if len(self.active) != 1:
            return super().acting()
        last: Adapter = list(self.adapters.values())[-1]  # type: ignore[assignment]
        return [(last.tensors(), last.spec)]


@layer("lora", "merged", "still_folded")
class SwitchedWhileMerged(Layer):
    """Switching to another adapter leaves the first one folded in."""

    def unfold(self) -> None:
        self.aside = {}


@layer("lora", "merged", "still_folded", 2)
class SwitchedOffWhileMerged(Layer):
    """Switching all adapters off leaves what is folded in at work."""

    def switch(self, names: Sequence[str]) -> None:
        held = self.aside if not names else {}
        if held:
            self.aside = {}
        super().switch(names)
        self.aside = held


@layer("lora", "merged", "switched_merged", 3)
class SwitchedHalfUnfolded(Layer):
    """Switching takes out half of what is folded in."""

    def switch(self, names: Sequence[str]) -> None:
        folded = self.base.weight.detach().clone() if self.merged else None
        super().switch(names)
        if folded is not None:
            with torch.no_grad():
                self.base.weight.lerp_(folded, 0.5)


@layer("lora", "inactive", steps=4)
class InactiveAreTrained(Layer):
    """What is not active is left out of the output, and not out of the graph."""

    def switch(self, names: Sequence[str]) -> None:
        super().switch(names)
        self.adapters.requires_grad_(True)

    def adapted(self, x: Tensor) -> Tensor:
        y = super().adapted(x)
        for adapter in self.adapters.values():
            tensors = adapter.tensors()  # type: ignore[operator]
            own = self.compose([(tensors, adapter.spec)], self.base.weight, None, x)  # type: ignore[list-item]
            y = y + own - own.detach()
        return y


@layer("ia3 lora", "gradients", steps=4)
class GradientOfTheLastAlone(Layer):
    """Of several active adapters all but the last are constants in the backward pass."""

    def acting(self) -> list:
        *rest, last = super().acting()
        return [*(({n: t.detach() for n, t in tensors.items()}, spec) for tensors, spec in rest), last]


@layer("dora", "gradients", steps=4)
class NormsTakePart(Layer):
    """The norms of several active adapters, constants in the equation, take part in the backward pass."""

    def compose(self, active: list, W: Tensor, b: Tensor | None, x: Tensor) -> Tensor:
        y = x @ W.mT
        for p, spec in active:
            update = spec.alpha / spec.rank * (p["B"] @ p["A"])
            y = p["m"] / torch.linalg.vector_norm(W + update, dim=1) * (y + x @ update.mT)
        return y if b is None else y + b


# --- merging


@layer("lora dora", "merged", "acts_while_folded")
class MergedTwice(Layer):
    """While it is folded in, the adapter still acts beside the weight."""

    def forward(self, x: Tensor) -> Tensor:
        return self.adapted(x) if self.active else self.base(x)


@layer("lora", "merged", "twice")
class MergedLayerFoldedAgain(Layer):
    """Exporting a layer that is merged in place folds the adapter in once more."""

    def to_plain(self) -> nn.Linear:
        other = copy.deepcopy(self)
        other.write(*other.folded())
        return other.base


@layer("lora dora", "merged", "merged_beneath")
class ExportIsFoldedInToo(Layer):
    """The layer that is exported has its weight's memory in common with the one that stays adapted."""

    def to_plain(self) -> nn.Linear:
        if not self.merged:
            self.write(*self.folded())
        return copy.deepcopy(self.base)


@layer("lora delora", "merged", "still_folded")
@layer("dora ia3", "merged", "unmerged_the_active")
class UnmergeTakesOutTheActive(Layer):
    """Unmerging subtracts the adapters that are active now."""

    def switch(self, names: Sequence[str]) -> None:
        merged, there = self.merged, self.base.weight.detach().clone()
        super().switch(names)
        if merged and names:
            own = self.base.weight.detach().clone()
            self.write(there - (self.folded()[0] - own), None)


@layer("dora", "merged", "norm_of_another", steps=5)
class MergedByAnotherNorm(Layer):
    """Folding one adapter in divides by the norm of the first one's weight."""

    def folded(self) -> Folded:
        if self.active == ["default"] or not self.active or "adapter_default" not in self.adapters:
            return super().folded()
        first, own = self.adapter("default"), self.adapter(self.active[-1])
        W, b = self.base.weight.detach(), self.base.bias
        with torch.no_grad():
            norm = (W + first.spec.alpha / first.spec.rank * first.B @ first.A).norm(dim=1)
            V = W + own.spec.alpha / own.spec.rank * own.B @ own.A
            return (own.m / norm)[:, None] * V, b


@layer("ia3", "merged", "bias_not_folded")
class BiasNotFolded(Layer):
    """The gate is folded into the weight alone."""

    def folded(self) -> Folded:
        return super().folded()[0], self.base.bias


@library("lora delora", "merged", "bias_lost")
class BiasLeftOut(Library):
    """The merged layer is built without its bias."""

    def merge(self, adapted: Adapted) -> nn.Linear:
        plain = super().merge(adapted)
        plain.bias = None
        return plain


@layer("lora", "merged", "nothing_acts")
class MergedIntoACopy(Layer):
    """Folding in writes into a copy of the weight, and the adapter is switched off."""

    def write(self, W: Tensor, b: Tensor | None) -> None:
        pass


@layer("lora ia3", "merged", "lost_by_unmerging")
class LostByUnmerging(Layer):
    """Taken out of the weight, the adapter acts no more until another one is switched on."""

    lost = False

    def switch(self, names: Sequence[str]) -> None:
        super().switch(names)
        self.lost = False

    def unfold(self) -> None:
        self.lost = self.lost or self.merged
        super().unfold()

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) if self.lost else super().forward(x)


@layer("lora ia3", "merged_twice", "twice")
class FoldsAgain(Layer):
    """What is folded in already is folded in again, and the weight that is kept aside is the merged one."""

    def fold(self) -> None:
        W, b = self.folded()
        self.aside = {n: p.detach().clone() for n, p in self.base.named_parameters()}
        self.write(W, b)


@layer("lora dora", "merged", "some_folded")
class FoldsTheFirst(Layer):
    """Of several active adapters the first is folded in."""

    def fold(self) -> None:
        kept, self.active = self.active, self.active[:1]
        super().fold()
        self.active = kept


@layer("lora dora ia3", "unmerge", "unmerged_by_subtraction")
class UnmergedBySubtraction(Layer):
    """The base weight is computed from the merged one."""

    def unfold(self) -> None:
        if self.merged:
            delta = {n: p.detach() - self.aside[n] for n, p in self.base.named_parameters()}
            with torch.no_grad():
                for name, change in delta.items():
                    getattr(self.base, name).sub_(self.taken_out(change))
            self.aside = {}

    def taken_out(self, change: Tensor) -> Tensor:
        """Of what merging changed."""
        return change * (1 + 1e-7)


@layer("lora", "copies", "copied_no_more")
class KeepsItsLastOutput(Layer):
    """In training mode the last output is kept, with its graph."""

    def forward(self, x: Tensor) -> Tensor:
        self.last = super().forward(x)
        return self.last if self.training else self.__dict__.pop("last")


@layer("lora dora", "unmerge", "unmerged_otherwise")
class UnmergedInHalf(UnmergedBySubtraction):
    """What is taken out of the base weight was rounded to bfloat16, what went in was not."""

    def taken_out(self, change: Tensor) -> Tensor:
        """Of what merging changed."""
        return change.bfloat16().to(change.dtype)


@layer("lora", "drift", "")
class LosesAtEveryRound(Layer):
    """Every unmerging shortens the base weight by a twentieth."""

    def unfold(self) -> None:
        shorter = self.merged
        super().unfold()
        if shorter:
            with torch.no_grad():
                self.base.weight.mul_(0.95)


@layer("lora dora", "detach", "detach_merged")
class DetachedMerged(Layer):
    """Detaching a merged layer hands back the merged weight."""

    def take_off(self) -> nn.Linear:
        return self.base


@layer("dora delora", "start", "norms_of_the_merged_weight")
class StartsFromTheMergedWeight(Layer):
    """A new adapter takes its norms from whatever the weight is at the moment."""

    def plain_weight(self) -> Tensor:
        return self.base.weight.detach()


@library("lora", "kept")
class MergeTakesTheLayerApart(Library):
    """Merging folds the adapters into the layer's own weight, and gives out that."""

    def merge(self, adapted: Adapted) -> nn.Linear:
        adapted.module.write(*adapted.module.folded())
        return adapted.module.base


@layer("pissa", "output", "shared_residual")
class PartStaysOut(Layer):
    """What an adapter takes out of the weight stays out, whichever is active."""

    def forward(self, x: Tensor) -> Tensor:
        if self.merged:
            return self.base(x)
        idle = [a for n, a in self.adapters.items() if n.removeprefix("adapter_") not in self.active]
        y = super().forward(x)
        for adapter in idle:
            y = y - nn.functional.linear(x, self.base.weight - adapter.W)  # type: ignore[arg-type, operator]
        return y


# --- saving, copying, refusing


@library("lora ia3", "saved")
class SavedWhileMerged(Library):
    """What is folded in is saved as zeros: the update is in the weight."""

    def save(self, adapted: Adapted, path) -> None:  # type: ignore[no-untyped-def]
        if not adapted.module.merged:
            super().save(adapted, path)
            return
        adapter = copy.deepcopy(adapted.module.adapter(adapted.name))  # type: ignore[attr-defined]
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.zero_()
        twin = Adapted(type("Twin", (), {"adapter": lambda self, name: adapter})(), adapted.slots)  # type: ignore[arg-type]
        object.__setattr__(twin, "name", "default")
        super().save(twin, path)


@library("lora", "saved", "rounded_at_load", 1)
class LoadsInSingle(Library):
    """What is loaded is made in float32 first."""

    def load(self, base: nn.Linear, spec: AdapterSpec, path) -> Adapted:  # type: ignore[no-untyped-def]
        found = super().load(base, spec, path)
        for slot in found.slots.values():
            slot.put(slot.canonical().float().to(slot.tensor.dtype))
        return found


@library("lora", "saved")
class SavesTheActiveOne(Library):
    """Whichever handle is saved, the file holds the adapter that is active."""

    def save(self, adapted: Adapted, path) -> None:  # type: ignore[no-untyped-def]
        layer: Layer = adapted.module  # type: ignore[assignment]
        other = copy.copy(adapted)
        object.__setattr__(other, "name", (layer.active or ["default"])[-1])
        super().save(other, path)


@layer("lora", "copies")
class CopiesShareTheAdapters(Layer):
    """A deep copy of the layer has the same adapters, not copies of them."""

    def __deepcopy__(self, memo: dict) -> Layer:
        twin = type(self).__new__(type(self))
        nn.Module.__init__(twin)
        twin.base, twin.record, twin.adapters = copy.deepcopy(self.base, memo), self.record, self.adapters
        twin.active, twin.aside = list(self.active), dict(self.aside)
        return twin


@layer("lora", "copies")
class CopiesCannotAnswer(Layer):
    """A deep copy of the layer lacks what its forward pass needs."""

    def __deepcopy__(self, memo: dict) -> Layer:
        twin = type(self).__new__(type(self))
        nn.Module.__init__(twin)
        twin.base, twin.record = copy.deepcopy(self.base, memo), self.record
        return twin


@layer("lora hra", "refusal", "half_added")
class FailedAddLeavesHalf(Layer):
    """The name is taken before the spec is looked at."""

    def add(self, name: str, spec: AdapterSpec) -> None:
        if "adapter_" + name in self.adapters:
            raise ValueError(f"there is an adapter {name!r}")
        self.adapters["adapter_" + name] = nn.Module()
        check(spec)
        del self.adapters["adapter_" + name]
        super().add(name, spec)


@layer("lora", "refusal", "failed_switch")
class FailedSwitchSwitchesOff(Layer):
    """Switching to a name that is not there switches everything off first."""

    def switch(self, names: Sequence[str]) -> None:
        self.active = []
        super().switch(names)


# --- names, ranks, what is trained, deleting while merged


@layer("lora dora hra", "deleted_merged", "deleted_acts", 5)
class DeletedWhileMerged(Layer):
    """What is deleted while it is merged stays in the weight, for good."""

    def delete(self, name: str) -> None:
        if not self.merged:
            super().delete(name)
            return
        self.active = [n for n in self.active if n != name]
        del self.adapters["adapter_" + name]
        self.aside = {}


@layer("lora", "deleted", "deleted_left", 2)
class DeletedIsKept(Layer):
    """What is deleted is kept under another name."""

    def delete(self, name: str) -> None:
        held = self.adapter(name)
        super().delete(name)
        self.adapters["kept_" + name] = held


@layer("lora ia3", "taken_name", "name_taken")
class NameTakenAgain(Layer):
    """An adapter that is added under a name that is taken replaces the one that has it."""

    def add(self, name: str, spec: AdapterSpec) -> None:
        if "adapter_" + name in self.adapters:
            del self.adapters["adapter_" + name]
        super().add(name, spec)


@layer("lora delora", "trainable", "inactive_trainable", 5)
class EveryAdapterTrainable(Layer):
    """Switching leaves requires_grad of every tensor on."""

    def switch(self, names: Sequence[str]) -> None:
        super().switch(names)
        self.adapters.requires_grad_(True)


def _with_others(layer: Layer, names: list[str], path) -> None:  # type: ignore[no-untyped-def]
    """Add the tensors of these adapters to a file."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    more = {f"{n}.{t}": v.detach().clone() for n in names for t, v in layer.adapter(n).tensors().items()}
    save_file({**load_file(path), **more}, path, metadata=metadata)


class Reads(Library):
    """Takes from a file what the adapter has."""

    def load(self, base: nn.Linear, spec: AdapterSpec, path) -> Adapted:  # type: ignore[no-untyped-def]
        found, held = self.adapt(base, spec), load_file(path)
        with torch.no_grad():
            for name, tensor in found.module.adapter("default").tensors().items():
                tensor.copy_(held[name])
        return found


@library("lora", "saved_alone", "saved_beside", 7)
class SavesNamesThatContainIt(Reads):
    """The file has whatever tensors have the adapter's name somewhere in theirs."""

    def save(self, adapted: Adapted, path) -> None:  # type: ignore[no-untyped-def]
        super().save(adapted, path)
        layer, own = adapted.module, adapted.name  # type: ignore[attr-defined]
        names = [key.removeprefix("adapter_") for key in layer.adapters]
        _with_others(layer, [n for n in names if own in n and n != own], path)


@library("lora", "saved_alone", "", 7)
class SavesThemAll(Reads):
    """The file of an adapter has all of them."""

    def save(self, adapted: Adapted, path) -> None:  # type: ignore[no-untyped-def]
        super().save(adapted, path)
        layer, own = adapted.module, adapted.name  # type: ignore[attr-defined]
        names = [key.removeprefix("adapter_") for key in layer.adapters]
        _with_others(layer, [n for n in names if n != own], path)


@library("lora ia3", "saved_alone", "alike_mixed_up", 7)
class SavesTheFirstThatFits(Library):
    """What is saved is the first adapter whose name the one that is asked for begins with."""

    def save(self, adapted: Adapted, path) -> None:  # type: ignore[no-untyped-def]
        names = [key.removeprefix("adapter_") for key in adapted.module.adapters]
        other = copy.copy(adapted)
        object.__setattr__(other, "name", next(n for n in names if adapted.name.startswith(n)))  # type: ignore[attr-defined]
        super().save(other, path)


@layer("lora hra", "names", "alike_mixed_up", 5)
class DeletesNamesThatContainIt(Layer):
    """Deleting an adapter deletes those whose names contain its name."""

    def delete(self, name: str) -> None:
        super().delete(name)
        for key in [k for k in self.adapters if name in k]:
            del self.adapters[key]


@layer("lora", "names", "alike_mixed_up", 5)
class SwitchesNamesThatContainIt(Layer):
    """Whatever has the name of an active adapter in its own acts, too."""

    def acting(self) -> list:
        names = [k.removeprefix("adapter_") for k in self.adapters]
        chosen = [n for n in names if any(own in n for own in self.active)]
        return [(self.adapter(n).tensors(), self.adapter(n).spec) for n in chosen]


class FirstRank(Layer):
    """Adapters share the first one's rank."""

    def misfit(self, rank: int, first: int) -> bool:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        first = next(iter(self.adapters.values())).spec.rank  # type: ignore[union-attr]
        if any(self.misfit(spec.rank, first) for _, spec in self.acting()):  # type: ignore[arg-type]
            return x @ x.new_zeros(self.base.in_features + 1, 1)
        return super().forward(x)


@layer("lora dora", "other_rank", "higher_rank")
class HigherRankFails(FirstRank):
    """An adapter of a higher rank than the first one's is added, and fails at its first call."""

    def misfit(self, rank: int, first: int) -> bool:
        return rank > first


@layer("lora", "other_rank", "lower_rank")
class LowerRankFails(FirstRank):
    """An adapter of a lower rank than the first one's is added, and fails at its first call."""

    def misfit(self, rank: int, first: int) -> bool:
        return rank < first


@layer("lora", "same_tensors", "dropped")
class SwitchingMakesParameters(Layer):
    """Switching makes new parameters of those that are active."""

    def switch(self, names: Sequence[str]) -> None:
        super().switch(names)
        for name in names if len(self.adapters) > 1 else ():
            for tensor, held in list(self.adapter(name).named_parameters()):
                setattr(self.adapter(name), tensor, nn.Parameter(held.detach().clone()))


# --- settings of several adapters


class Dropping(Layer):
    """LoRA with dropout, at a rate for each adapter."""

    def add(self, name: str, spec: AdapterSpec) -> None:
        super().add(name, spec)
        self.adapter(name).train(self.training)

    def rate(self, name: str) -> float:
        return self.adapter(name).spec.dropout

    def adapted(self, x: Tensor) -> Tensor:
        y = self.base(x)
        for name in self.active:
            adapter = self.adapter(name)
            kept = nn.functional.dropout(x, self.rate(name), adapter.training)
            y = y + adapter.spec.alpha / adapter.spec.rank * kept @ adapter.A.mT @ adapter.B.mT
        return y


class DroppingLibrary(Library):
    """Right, LoRA alone."""

    variants = frozenset({"lora"})
    layer = Dropping


class LearnsAShift(Layer):
    """LoRA with a bias of its own beside the factors, which starts at zero."""

    def add(self, name: str, spec: AdapterSpec) -> None:
        super().add(name, spec)
        out = self.base.weight.shape[0]
        self.adapter(name).register_parameter("shift", nn.Parameter(torch.zeros(out), requires_grad=False))

    def adapted(self, x: Tensor) -> Tensor:
        return super().adapted(x) + sum(self.adapter(name).shift for name in self.active).to(x.dtype)

    def folded(self) -> Folded:
        W, b = super().folded()
        shift = sum(self.adapter(name).shift.detach() for name in self.active)
        return W, None if b is None else b + shift


class ShiftingLibrary(Library):
    """Right, LoRA alone, with a tensor that the method does not have."""

    variants = frozenset({"lora"})
    layer = LearnsAShift


@layer("lora", "dropout", "dropout_of_another")
class OneRateForAll(Dropping):
    """The rate of the adapter that was added last is everybody's."""

    def rate(self, name: str) -> float:
        return list(self.adapters.values())[-1].spec.dropout


@layer("lora", "dropout", "added_in_training")
class AddedInTraining(Dropping):
    """What is added is in training mode, whatever the layer is in."""

    def add(self, name: str, spec: AdapterSpec) -> None:
        super().add(name, spec)
        self.adapter(name).train()


@layer("lora dora", "scale", "root_of_another")
class FormOfTheFirst(Layer):
    """Whether the scale is rank-stabilised is what the first adapter says."""

    def add(self, name: str, spec: AdapterSpec) -> None:
        first = next(iter(self.adapters.values())).spec if self.adapters else spec
        super().add(name, replace(spec, rslora=first.rslora))


__all__ = ["BROKEN_LIVES", "BrokenLife", "save_file"]
