"""Checkpoint vectors as cases of a claim, and a subject's model compared with what its vector says."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from harness.compare import rounding
from harness.compare.context import Context, where_worst
from harness.compare.layer import BadAnswer, SubjectRaised
from harness.compare.loose_keys import PATTERNS
from harness.compare.misread_files import RUNS_AS_ANOTHER, misread
from harness.compare.outcome import Deviation
from harness.compare.thresholds import ROUNDOFFS, THRESHOLDS
from oracles.implementation import AdapterSpec, Unsupported
from oracles.variants import Variant
from oracles.vectors import faults
from oracles.vectors.chain import run
from oracles.vectors.corpus import Vector, vectors
from reports.model import Diagnosis

NOT_APPLIED = "not_applied"  # the reading in which a model is the base
# What a file has that it is asked about, by the kind of public fault that it is for; patterns speak for themselves.
HOLDING = {
    faults.SCALE: "a rank and an alpha",
    faults.LAYOUT: "weights of another layout",
    faults.SILENT: "names of another form",
    faults.NAMES: "modules chosen by their names",
    faults.FUSED: "fused projections",
    faults.EXPERTS: "stacked experts",
    faults.BIAS: "layers that have a bias",
    faults.TIED: "tied embeddings",
    faults.SAVED: "modules that are held whole",
    faults.DTYPE: "several dtypes",
    faults.SHARDS: "a base in several files",
    faults.OTHER: "the method's own tensors",
}
Strategy = Callable[[Variant], st.SearchStrategy["VectorCase"]]


@dataclass(frozen=True)
class VectorCase:
    """One vector of the committed corpus; of the spec only the method counts, the rest is the file's."""

    spec: AdapterSpec
    vector: Vector

    def describe(self) -> dict[str, Any]:
        """What the file has that it is asked about, whatever is found about it, for a witness."""
        about = self.vector.about
        holding = HOLDING.get(about["source"]) if about["expect"] == "apply" else None
        more = {"with": holding, **{name: self.config.get(name) for name in PATTERNS}}
        return {"vector": self.vector.id, "base": about["base"], **{n: v for n, v in more.items() if v}}

    @cached_property
    def config(self) -> dict[str, Any]:
        """The file's options; none where they cannot be read."""
        try:
            found = json.loads((self.vector.adapter / "adapter_config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def __repr__(self) -> str:
        return f"VectorCase({self.vector.id})"


@cache
def corpus() -> tuple[Vector, ...]:
    """The committed vectors, read once."""
    return tuple(vectors())


def chosen(variant: Variant, sources: Collection[str], expect: Collection[str]) -> list[VectorCase]:
    """A variant's vectors for some kinds of public faults; () is every kind."""
    return [
        VectorCase(AdapterSpec(variant.id), v)
        for v in corpus()
        if v.about["flags"]["method"] == variant.id
        and v.about["expect"] in expect
        and (not sources or v.about["source"] in sources)
    ]


def drawn(*sources: str, expect: Collection[str] = ("apply", "apply_or_refuse")) -> Strategy:
    """Every such vector of the variant."""
    return lambda variant: st.sampled_from(chosen(variant, sources, expect))


def has(*sources: str, expect: Collection[str] = ("apply", "apply_or_refuse")) -> Callable[[Variant], bool]:
    """Whether a variant has any."""
    return lambda variant: bool(chosen(variant, sources, expect))


def loaded(context: Context, case: VectorCase, base: nn.Module | None = None) -> nn.Module:
    """The vector's base in float32, or ``base``, with its adapter, by the subject.

    Raises Unsupported where it offers none, and where it refuses this one in so many words: that is a mode that is
    missing, and no file misread.
    """
    try:
        return load_from(context, case.vector, case.vector.adapter, base)[0]
    except SubjectRaised as error:
        if isinstance(error.__cause__, ValueError | NotImplementedError):
            raise Unsupported(str(error).replace(str(case.vector.home), "refs/vectors")) from error
        raise


def load_from(
    context: Context, vector: Vector, folder: Path, base: nn.Module | None = None
) -> tuple[nn.Module, Collection[str]]:
    """The vector's base in float32 with a folder's adapter, by the subject; and the layers that it says it adapted."""
    model = vector.build(torch.float32) if base is None else base
    layers = context.calling("load_peft", context.subject.load_peft, model, folder)
    return model, layers if isinstance(layers, Mapping) else ()


def same_model(context: Context, case: VectorCase, model: nn.Module) -> None:
    """Raise Deviation unless the adapted model computes what the vector says; it names module and wrong reading."""
    found = effective_tensors(case.vector, model)
    same_tensors(context, case, found, {n: case.vector.merged[n] for n in found}, measured=True)
    for i, x in enumerate(case.vector.inputs):
        with torch.no_grad():
            actual = model(x.float() if x.is_floating_point() else x)
        if not isinstance(actual, Tensor):
            raise BadAnswer(
                f"{context.subject.name}'s model answers with {type(actual).__name__}, expected a tensor"
            )
        exact = case.vector.numbers[f"logits/{i}"]
        try:
            context.judge(case, f"logits of input {i}", actual.double(), exact, _floor(exact))
        except Deviation as deviation:
            deviation.diagnosis = _logits_like(case.vector, i, actual.double())
            told = deviation.diagnosis
            raise deviation.with_note(told.summary if told else "equals no known reading") from None


def same_tensors(
    context: Context,
    case: VectorCase,
    found: Mapping[str, Tensor],
    exact: Mapping[str, Tensor],
    vector: Vector | None = None,
    measured: bool = False,
) -> None:
    """Raise Deviation at the first tensor that is not the expected one, with the wrong reading that it equals.

    ``vector``: whose readings these are, where it is not the case's own. ``measured``: whether the tensors are those
    of the model as it was read, so that what of the file explains them is looked for where no reading does.
    """
    for name, right in exact.items():
        if found[name].shape != right.shape:
            expected, actual = where_worst(found[name], right)
            raise Deviation(case, f"weights of {name}", expected, actual)
        try:
            context.judge(case, f"weights of {name}", found[name].double(), right, _floor(right))
        except Deviation as deviation:
            told, note = _explained(vector or case.vector, found, exact, measured)
            deviation.diagnosis = told
            raise deviation.with_note(note) from None


def _explained(
    vector: Vector, found: Mapping[str, Tensor], exact: Mapping[str, Tensor], measured: bool
) -> tuple[Diagnosis | None, str]:
    """What explains tensors that are not the expected ones, and in words how it shows."""
    reading = reading_like(vector, found)
    if reading is None and measured and (told := misread(vector, found, is_near)):
        return told
    reading = reading or _partly(vector, found, exact)
    return reading, reading.summary if reading else "equals no known reading"


def _floor(exact: Tensor) -> float:
    unit = rounding.roundoff(torch.float32) * ROUNDOFFS["checkpoint"]
    return unit * float(torch.linalg.vector_norm(exact.double()))


def effective_tensors(vector: Vector, model: nn.Module) -> dict[str, Tensor]:
    """Weight and bias of every layer that shows them: what it makes of the unit vectors and of zero, or of each id."""
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        for layer in vector.model["layers"]:
            if layer["kind"] in ("linear", "conv1d"):
                found |= _affine(layer, model.get_submodule(layer["name"]))
            elif layer["kind"] == "embedding":
                table = model.get_submodule(layer["name"])(torch.arange(layer["number"]))
                found[f"{layer['name']}.weight"] = table.double()
    return found


def _affine(layer: Mapping[str, Any], module: nn.Module) -> dict[str, Tensor]:
    zero = module(torch.zeros(1, layer["in"]))[0].double()
    weight = module(torch.eye(layer["in"])).double() - zero
    name = layer["name"]
    found = {f"{name}.weight": weight if layer["kind"] == "conv1d" else weight.mT}
    return found | ({f"{name}.bias": zero} if layer["bias"] else {})


def reading_like(vector: Vector, found: Mapping[str, Tensor]) -> Diagnosis | None:
    """The wrong reading that all tensors of a model equal."""
    for wrong in vector.about["wrong_readings"]:
        reading = vector.reading(wrong["id"])
        if all(n in found and is_near(found[n].double(), reading[n]) for n in reading if n in found):
            return _diagnosis(wrong["id"], wrong["sentence"])
    return None


def _partly(vector: Vector, found: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> Diagnosis | None:
    """What is said where every tensor is right or the base's own."""
    for name, right in exact.items():
        own = vector.untied.get(name)
        if not (
            is_near(found[name].double(), right) or (own is not None and is_near(found[name].double(), own))
        ):
            return None
    return _diagnosis(NOT_APPLIED, "the update of some modules is not applied")


def is_near(actual: Tensor, exact: Tensor) -> bool:
    """Whether a tensor is the expected one but for what single precision does."""
    gap = float(torch.linalg.vector_norm(actual - exact)) if actual.shape == exact.shape else float("inf")
    return gap <= THRESHOLDS["formula"] * _floor(exact)


def _logits_like(vector: Vector, i: int, actual: Tensor) -> Diagnosis | None:
    """The wrong reading whose logits these are."""
    for wrong in vector.about["wrong_readings"]:
        if is_near(actual, run(vector.model, vector.reading(wrong["id"]), vector.inputs[i])):
            return _diagnosis(wrong["id"], wrong["sentence"])
    return None


def _diagnosis(identity: str, sentence: str) -> Diagnosis:
    """One of the catalogued readings, whose tensors these are: what other claims show would give other ones."""
    as_base = "the adapter loads without an error, and the model answers there as the base does"
    return Diagnosis(
        f"checkpoints.{identity}",
        sentence,
        as_base if identity == NOT_APPLIED else RUNS_AS_ANOTHER,
        source="catalogue",
    )


def is_refused(context: Context, case: VectorCase) -> bool:
    """Whether the subject will not have the folder; raises Unsupported where it reads none."""
    try:
        load_from(context, case.vector, case.vector.adapter)
    except SubjectRaised:
        return True
    return False


__all__ = [
    "VectorCase",
    "drawn",
    "effective_tensors",
    "has",
    "is_near",
    "is_refused",
    "load_from",
    "loaded",
    "reading_like",
    "same_model",
    "same_tensors",
]
