"""Checkpoints with awkward names and options as cases of a claim: read as they mean, saved, and read again."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from torch import Tensor, nn

from harness.cases.tiny_models import shortened
from harness.checkpoints.adapter_folder import AdapterFolder
from harness.checkpoints.base_checkpoint import BaseCheckpoint
from harness.compare.checkpoint_vectors import VectorCase, effective_tensors, is_near, load_from, same_tensors
from harness.compare.context import Context
from harness.compare.layer import SubjectRaised, said
from harness.compare.loose_keys import are_words, keys_of, resembling, without
from harness.compare.outcome import Deviation, ToldElsewhere
from oracles.implementation import AdapterSpec, Unsupported
from oracles.variants import Variant
from oracles.vectors.awkward import TOPICS, methods_of
from oracles.vectors.corpus import Vector
from oracles.vectors.unreadable import Unreadable
from oracles.vectors.writer import write_vectors
from reports.model import Diagnosis

Strategy = Callable[[Variant], st.SearchStrategy["AwkwardCase"]]
OPTIONS = ("target_modules", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
           "modules_to_save", "feedforward_modules")  # fmt: skip
FEW = 6
# Topic -> what its folders are for.
FOLDERS = {
    "block_numbers": "for blocks that have lists of their own",
    "layers_pattern": "for a model with another list whose name ends as layers_pattern says",
    "root_list": "for a list of blocks at the model's root",
    "block_zero": "for block 0 alone",
    "own_patterns": "that has a module's rank and its alpha under different keys",
    "pattern_keys": "with expressions as keys of rank_pattern or alpha_pattern",
    "saved_names": "with a whole module whose name is part of another's",
    "odd_names": 'for modules with "weight", or an adapter\'s name, in theirs',
    "own_words": "for a module that is called as a tensor of the method",
    "many_targets": "with a long list of target modules",
}
PLAIN_KEYS = "with a key of rank_pattern or alpha_pattern that is part of other modules' names"
NOT_HAD = "the adapter cannot be had from a file that is right"
MATCHES_MORE = Diagnosis(
    "checkpoints.pattern_keys.matches_more",
    "a key of rank_pattern or alpha_pattern is applied to modules whose names it is only part of, "
    "and the checkpoint ends in an exception",
    NOT_HAD,
    remedy="match a key with all of a module's name, or with its ending at a dot",
)


@dataclass(frozen=True)
class AwkwardCase(VectorCase):
    """A folder of one topic, and the plain one with the same option on ordinary names."""

    plain: Vector
    topic: str

    def describe(self) -> dict[str, Any]:
        """The options that the file has, and the names of the model's layers, for a witness."""
        options = {n: _few(self.config[n]) for n in OPTIONS if self.config.get(n) not in (None, [], {})}
        return {"checkpoint": self.vector.id, **options, "layers of the model": _few(_layers(self.vector))}


def _few(value: Any) -> Any:
    return shortened(value, FEW) if isinstance(value, list) else value


@cache
def corpus(topic: str) -> tuple[AwkwardCase, ...]:
    """The folders of one topic, written once into a temporary folder of this process."""
    home = Path(tempfile.mkdtemp(prefix="audit-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    found = list(TOPICS[topic]())
    drafts = {draft.id: draft for each in found for draft in (each.draft, each.plain)}.values()
    write_vectors(home, {draft.base: draft.model for draft in drafts}.values(), drafts)
    return tuple(_case(Vector(home, each.draft.id), Vector(home, each.plain.id), topic) for each in found)


def _case(vector: Vector, plain: Vector, topic: str) -> AwkwardCase:
    return AwkwardCase(AdapterSpec(vector.about["flags"]["method"]), vector, plain, topic)


def drawn(topic: str) -> Strategy:
    """A variant's folders of one topic."""
    return lambda variant: st.sampled_from([c for c in corpus(topic) if c.spec.variant == variant.id])


def has(topic: str) -> Callable[[Variant], bool]:
    """Whether a variant has any."""
    return lambda variant: variant.id in methods_of(topic)


def read_as_meant(context: Context, case: AwkwardCase) -> None:
    """Raise Deviation unless the folder is read, saved and read again as what it means.

    Raises Unsupported where the library refuses the plain folder beside it too, and ToldElsewhere where it reads that
    one wrongly too: then it is not the names.
    """
    try:
        _round_trip(context, case, case.vector)
    except (Deviation, SubjectRaised) as found:
        _demand_plain(context, case)
        if isinstance(found, SubjectRaised):
            raise _refused(context, case, found) from found
        raise


def _refused(context: Context, case: AwkwardCase, why: SubjectRaised) -> Deviation:
    """Of a folder that ends in an exception: nothing of it runs, rightly or wrongly."""
    told = Diagnosis(
        f"checkpoints.{case.topic}.refused",
        f"a checkpoint {_folder_of(case)} ends in an exception, where the plain one beside it is read",
        NOT_HAD,
        remedy="read it as its options and the names of its tensors say",
    )
    told = MATCHES_MORE if _matches_more(context, case) else told
    quantity, wanted = "the answer", "the adapter that the file means"
    return Deviation(case, quantity, wanted, "an error", note=str(why), diagnosis=told)


def _folder_of(case: AwkwardCase) -> str:
    """What a folder is for; keys that are plain words are no expressions."""
    is_plain = case.topic == "pattern_keys" and are_words(keys_of(case.config))
    return PLAIN_KEYS if is_plain else FOLDERS[case.topic]


def _matches_more(context: Context, case: AwkwardCase) -> bool:
    """Whether a folder is read once it is not for the modules whose names its keys are only part of."""
    keys = keys_of(case.config)
    modules = resembling(keys, _layers(case.vector)) if are_words(keys) else set()
    if not modules or case.topic != "pattern_keys":
        return False
    with without(case.vector.adapter, modules) as folder, suppress(SubjectRaised, Unsupported):
        load_from(context, case.vector, folder)
        return True
    return False


def _demand_plain(context: Context, case: AwkwardCase) -> None:
    """Whether the plain folder is read, saved and read again."""
    try:
        _round_trip(context, case, case.plain)
    except SubjectRaised as refusal:
        raise Unsupported(str(refusal)) from refusal
    except Deviation as found:
        raise ToldElsewhere(f"not on ordinary names either: {found}", "checkpoints") from found


def _round_trip(context: Context, case: AwkwardCase, vector: Vector) -> None:
    model = _read(context, case, vector, vector.adapter)
    with tempfile.TemporaryDirectory(prefix="audit-") as place:
        folder = Path(place) / "saved"
        try:
            context.calling("save_peft", context.subject.save_peft, model, folder)
        except Unsupported:
            return  # `checkpoints.written` says so
        _same_meaning(context, case, vector, folder)
        _read(context, case, vector, folder)


def _read(context: Context, case: AwkwardCase, vector: Vector, folder: Path) -> nn.Module:
    """The vector's base with the folder's adapter; raises Deviation unless every layer is what it should be."""
    model, layers = load_from(context, vector, folder)
    saved = "" if folder == vector.adapter else " once it is saved and read again"
    meant = _adapted(vector)
    if extra := sorted(set(layers) & set(_layers(vector)) - meant):
        what = f"layers that get an adapter{saved}"
        raise Deviation(
            case, what, _listed(meant), _listed(set(layers)), note=f"extra: {', '.join(extra[:4])}"
        )
    found = effective_tensors(vector, model)
    changed = {n for n, t in found.items() if not is_near(t.double(), vector.untied[n])}
    right = set(vector.part("delta/"))
    note = f"missing: {_listed(right - changed)}; extra: {_listed(changed - right)}"
    what = f"tensors that the adapter changes{saved}"
    context.demand(changed == right, case, what, _listed(right), _listed(changed), note)
    same_tensors(context, case, found, {n: vector.merged[n] for n in found}, vector)
    return model


def _same_meaning(context: Context, case: AwkwardCase, vector: Vector, folder: Path) -> None:
    """Raise Deviation unless the saved folder means the vector's update."""
    try:
        modules = AdapterFolder(folder).against(BaseCheckpoint(vector.base))
    except Unreadable as why:
        raise Deviation(
            case, "the saved folder", "a readable adapter for its base", "none", note=said(why)
        ) from None
    changed: dict[str, Tensor] = {
        n: update.apply(vector.untied[n]) for module in modules for n, update in module.updates().items()
    }
    same_tensors(context, case, {**vector.untied, **changed}, vector.merged, vector)


def _layers(vector: Vector) -> list[str]:
    return [layer["name"] for layer in vector.model["layers"] if "name" in layer]


def _adapted(vector: Vector) -> set[str]:
    """The modules that the file holds tensors for."""
    return {name.rpartition(".")[0] for name in vector.part("delta/")}


def _listed(names: Collection[str]) -> str:
    some = sorted(names)
    return ", ".join(some[:4]) + (f", ... ({len(some)})" if len(some) > 4 else "") if some else "none"
