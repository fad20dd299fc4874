"""What is told of a checkpoint that is read otherwise than any catalogued reading: only what is measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import pytest
from torch import Tensor

from harness.cases.profiles import Profile
from harness.compare.checkpoint_vectors import HOLDING, VectorCase, chosen, corpus
from harness.compare.loose_keys import PATTERNS
from oracles.implementation import AdapterSpec
from oracles.variants import VARIANTS
from oracles.vectors import faults
from oracles.vectors.meaning import AdaptedModule
from oracles.vectors.update import Replace, Unchanged, Update
from reports.model import Finding
from tests.subjects.checkpoint_loaders import MergingLoader, Updates
from tests.subjects.judged import audit, once

TWELVE = Profile("default", 12, 0)
READ = ("checkpoints.scale", "checkpoints.equation", "checkpoints.whole_tensors")
SCALE, LOST, OTHERWISE = "checkpoints.scale_misread", "checkpoints.lost", "checkpoints.otherwise"


def told(subject: MergingLoader, variant: str, *checks: str) -> dict[str | None, Finding]:
    """The findings by their mistakes."""
    found = audit(subject, [variant], checks=lambda c: c.id in (checks or READ), profile=TWELVE)
    return {finding.mistake: finding for finding in found.findings}


def half_as_much_again(module: AdaptedModule) -> Updates:
    """α, or λ, is one and a half times the file's."""
    strength = {n: 1.5 * t for n, t in module.factors.items() if n == "lambda"}
    return dataclasses.replace(
        module, alpha=1.5 * module.alpha, factors={**module.factors, **strength}
    ).updates()


@pytest.mark.parametrize("variant", ["lora", "dora", "delora"])
def test_a_scale_is_told_where_a_factor_gives_the_tensors(variant: str) -> None:
    (found,) = told(MergingLoader(variant, half_as_much_again), variant).values()
    assert found.mistake == SCALE
    assert found.title == "the scale of a checkpoint in PEFT's format is misread"


def test_how_a_scale_shows() -> None:
    """How many times the file's it is, of a tensor by name."""
    (claim,) = once(MergingLoader("dora", half_as_much_again), ["dora"], lambda c: c.id == READ[0], TWELVE)
    assert claim.witness is not None
    assert claim.witness.note == "layers.0.k_proj.weight is the file's with 1.5 times the scale"


class Larger(Update):
    """A tensor, and a tenth of it."""

    def rows(self, W: Tensor, start: int) -> Tensor:
        return 1.1 * W


def also_the_bias(module: AdaptedModule) -> Updates:
    """The weight is right, and a bias is larger."""
    return {**module.updates(), **({module.named("bias"): Larger()} if module.has_bias else {})}


def without_a_column(module: AdaptedModule) -> Updates:
    """The first input of the second factor is lost."""
    A = module.factors["A"].clone()
    A[:, 0] = 0
    return dataclasses.replace(module, factors={**module.factors, "A": A}).updates()


@pytest.mark.parametrize("read", [also_the_bias, without_a_column])
def test_no_scale_is_told_where_it_is_right(read: Callable[[AdaptedModule], Updates]) -> None:
    """Another tensor differs, or not by a factor; nothing that a file holds is lost."""
    found = told(MergingLoader("dora", read), "dora")
    assert set(found) == {OTHERWISE}
    assert found[OTHERWISE].title == "a checkpoint in PEFT's format does not compute the method's equation"


def keeps_one_bias(module: AdaptedModule) -> Updates:
    """Of what is held whole, what belongs to the first layers is left out."""
    lost = {n for n, u in module.updates().items() if isinstance(u, Replace) and n.startswith("layers.0")}
    return {n: Unchanged(u) if n in lost else u for n, u in module.updates().items()}


def test_what_is_lost_is_told_where_the_base_has_it() -> None:
    found = told(MergingLoader("lora", keeps_one_bias), "lora")
    assert set(found) == {LOST}
    assert found[LOST].title == "what a checkpoint holds beside its factors is lost"


def at_its_start(name: str) -> Callable[[AdaptedModule], Updates]:
    """One tensor of the file is not looked at."""

    def read(module: AdaptedModule) -> Updates:
        base = next(v for v in corpus() if v.about["flags"]["method"] == module.method.id).untied
        start = next(t.exact for t in VARIANTS[module.method.id].tensors if t.name == name)
        weight = base.get(module.named("weight"))
        if (
            start is None
            or weight is None
            or not module.factors
            or weight.shape[1] != module.factors["A"].shape[1]
        ):
            return module.updates()
        factors = {**module.factors, name: start(weight, AdapterSpec(module.method.id))}
        return dataclasses.replace(module, factors=factors).updates()

    return read


@pytest.mark.parametrize(("variant", "name"), [("delora", "w_norm"), ("dora", "m")])
def test_a_tensor_that_is_not_read_has_its_name(variant: str, name: str) -> None:
    found = told(MergingLoader(variant, at_its_start(name)), variant, "checkpoints.equation")
    assert set(found) == {f"checkpoints.unread.{name}"}


def test_a_right_reader_is_told_nothing() -> None:
    assert not told(MergingLoader("dora"), "dora")


class OtherFunction(MergingLoader):
    """The bias is larger, in an adapter that is made afresh as in one that is read."""

    def __init__(self) -> None:
        super().__init__("dora", also_the_bias)
        self.methods["dora"] = dataclasses.replace(self.methods["dora"], bias=larger)


def larger(b: Tensor, p: Mapping[str, Tensor], spec: AdapterSpec) -> Tensor:
    """A tenth more."""
    return 1.1 * b


def test_a_wrong_function_explains_what_is_read() -> None:
    (found,) = told(OtherFunction(), "dora", "forward.random_parameters", *READ).values()
    assert found.aspect == "forward"


def test_a_case_is_described_by_what_its_file_has() -> None:
    """Of every vector, in other words than those of a fault."""
    about = {vector.about["source"] for vector in corpus()}
    assert about - {faults.PATTERN} == set(HOLDING)
    for variant in VARIANTS.values():
        for case in chosen(variant, (), ("apply", "apply_or_refuse", "refuse")):
            _is_described(case)


def _is_described(case: VectorCase) -> None:
    said = case.describe()
    assert "for" not in said
    assert all(said.get(name) == (case.config.get(name) or None) for name in PATTERNS)
    assert not {"ignored", "lost", "misread"} & set(str(said).split())
