"""Checkpoints: an adapter folder in PEFT's format means one model, and what means none is refused.

The cases are the committed vectors (`refs/vectors`), made from the equations alone; every one tells its right reading
from the wrong ones by 1 % of the update at least.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from harness.cases.layer_cases import Domain
from harness.checkpoints.adapter_folder import AdapterFolder
from harness.checkpoints.base_checkpoint import BaseCheckpoint
from harness.compare.checkpoint_vectors import (
    VectorCase,
    drawn,
    has,
    is_refused,
    loaded,
    same_model,
    same_tensors,
)
from harness.compare.context import Context
from harness.compare.layer import WrongType, said
from harness.compare.misread_files import RUNS_AS_ANOTHER
from harness.compare.outcome import Deviation
from harness.engine.checks import check
from oracles.vectors.unreadable import Unreadable
from reports.model import Diagnosis

ALL = 150  # more than any variant has vectors: each is asked
SCALE = ("scale lost or misread", "per-layer rank or alpha ignored")
LAYOUT = ("weights of another layout", "fused projections", "stacked expert weights")
NAMES = ("names matched by accident", "loaded without an error and not applied")
WHOLE = ("a bias left out", "tied embeddings", "modules saved whole and lost")
DTYPES = ("mixed dtypes", "sharded files")
EQUATION = ("a method's own equation misread",)
# Of a method whose base is left by its start, a file is read onto what that start leaves.
STARTS = ("init.principal", "init.residual")
# A wrong function of the method is wrong of what is read from a file, too.
FUNCTION = ("forward.random_parameters",)
NOT_THE_METHOD = "a checkpoint in PEFT's format does not compute the method's equation"
OTHERWISE = Diagnosis("checkpoints.otherwise", NOT_THE_METHOD, RUNS_AS_ANOTHER)


@check(
    "checkpoints",
    "critical",
    title="a checkpoint in PEFT's format is not read as its ranks and alphas say",
    failure_mode=RUNS_AS_ANOTHER,
    domain=Domain(strategy=drawn(*SCALE)),
    against=("paper",),
    applies=has(*SCALE),
    examples=ALL,
    may_refuse=True,
    follows=(*STARTS, *FUNCTION),
    diagnose=False,
)
def test_scale(context: Context, case: VectorCase) -> None:
    """α/r, α/√r and each module's own rank and alpha are applied as the file says."""
    _as_the_method(context, case)


@check(
    "checkpoints",
    "critical",
    title="a checkpoint in PEFT's format is misread on layers of another layout",
    failure_mode=RUNS_AS_ANOTHER,
    domain=Domain(strategy=drawn(*LAYOUT)),
    against=("paper",),
    applies=has(*LAYOUT),
    examples=ALL,
    may_refuse=True,
    follows=("checkpoints.equation", *FUNCTION),
    diagnose=False,
)
def test_layouts(context: Context, case: VectorCase) -> None:
    """On (in, out) weights, embeddings, convolutions, fused and stacked weights the update is what the factors mean."""
    _as_written(context, case)


@check(
    "checkpoints",
    "critical",
    title="an adapter is applied to other modules than its file names, or to none",
    failure_mode="the adapter loads without an error, and the model would answer without it, or with it elsewhere",
    domain=Domain(strategy=drawn(*NAMES)),
    against=("paper",),
    applies=has(*NAMES),
    examples=ALL,
    may_refuse=True,
    follows=("checkpoints.scale", *FUNCTION),
    diagnose=False,
)
def test_names(context: Context, case: VectorCase) -> None:
    """Suffixes, expressions, layer indices and prefixes select the modules that the file means; or it is refused."""
    _as_written(context, case)


@check(
    "checkpoints",
    "critical",
    title="a checkpoint with biases, with whole modules or for tied embeddings is misread",
    failure_mode=RUNS_AS_ANOTHER,
    domain=Domain(strategy=drawn(*WHOLE)),
    against=("paper",),
    applies=has(*WHOLE),
    examples=ALL,
    may_refuse=True,
    follows=("checkpoints.scale", "checkpoints.equation", *FUNCTION),
    diagnose=False,
)
def test_whole_tensors(context: Context, case: VectorCase) -> None:
    """Biases, modules that are saved whole and one name of a tied tensor are what the file says."""
    _as_written(context, case)


@check(
    "checkpoints",
    "critical",
    title="a checkpoint of another dtype, or a base in several files, is misread",
    failure_mode=RUNS_AS_ANOTHER,
    domain=Domain(strategy=drawn(*DTYPES)),
    against=("paper",),
    applies=has(*DTYPES),
    examples=ALL,
    may_refuse=True,
    follows=("checkpoints.scale", *FUNCTION),
    diagnose=False,
)
def test_dtypes(context: Context, case: VectorCase) -> None:
    """Factors in half, single and double precision, also mixed in one file, are read as the numbers they hold."""
    _as_written(context, case)


@check(
    "checkpoints",
    "critical",
    title=NOT_THE_METHOD,
    failure_mode=RUNS_AS_ANOTHER,
    domain=Domain(strategy=drawn(*EQUATION)),
    against=("paper",),
    applies=has(*EQUATION),
    examples=ALL,
    may_refuse=True,
    follows=(*STARTS, *FUNCTION),
    diagnose=False,
)
def test_equation(context: Context, case: VectorCase) -> None:
    """Each method's tensors, in PEFT's names and layout, give the paper's function of the base."""
    _as_the_method(context, case)


@check(
    "checkpoints",
    "major",
    title="after a checkpoint is loaded the base is trainable beside the adapter",
    failure_mode="training that goes on from the checkpoint changes the whole model, which no adapter's file holds",
    domain=Domain(strategy=drawn(*SCALE)),
    against=("paper",),
    applies=has(*SCALE),
    examples=2,
    may_refuse=True,
    follows=("shapes.frozen_base", "targets.counts"),
    diagnose=False,
)
def test_frozen(context: Context, case: VectorCase) -> None:
    """Where a loaded adapter wants gradients, nothing of the base does."""
    base = case.vector.build(torch.float32)
    names, own = dict(base.named_parameters()).keys(), {id(parameter) for parameter in base.parameters()}
    wanting = {n: p for n, p in loaded(context, case, base).named_parameters() if p.requires_grad}
    thawed = {n for n, p in wanting.items() if id(p) in own}
    # What has a name of the base's own is a weight that the adapter has been merged into.
    if any(n not in thawed and n not in names for n in wanting):
        quantity = "parameters of the base that want a gradient beside the adapter's"
        context.demand(not thawed, case, quantity, "none", ", ".join(sorted(thawed)))


def _as_the_method(context: Context, case: VectorCase) -> None:
    """The same, of which no more is known than that another function is computed where nothing is known by name."""
    try:
        _as_written(context, case)
    except Deviation as found:
        found.diagnosis = found.diagnosis or OTHERWISE
        raise


def _as_written(context: Context, case: VectorCase) -> None:
    """The loaded model is the vector's; a folder that may be refused may be."""
    if case.vector.about["expect"] == "apply_or_refuse" and is_refused(context, case):
        return
    same_model(context, case, loaded(context, case))


@check(
    "checkpoints",
    "major",
    title="a checkpoint that does not fit its configuration, or the base, is loaded without an error",
    failure_mode="part of an adapter would not be applied",
    domain=Domain(strategy=drawn(expect=("refuse",))),
    against=("paper",),
    applies=has(expect=("refuse",)),
    examples=ALL,
    may_refuse=True,
    diagnose=False,
)
def test_refused(context: Context, case: VectorCase) -> None:
    """Missing, extra, misshapen and empty tensors, and files that are none, raise an error."""
    refused = is_refused(context, case)
    context.demand(refused, case, "loading", "an error", "no error", case.vector.about["why_refused"])


@check(
    "checkpoints",
    "critical",
    title="the merged model is not the model that the checkpoint means",
    failure_mode="deployment would run another model than the one that was trained and evaluated",
    domain=Domain(strategy=drawn(expect=("apply",))),
    against=("paper",),
    applies=has(expect=("apply",)),
    examples=ALL,
    may_refuse=True,
    follows=("checkpoints.scale", "checkpoints.layouts", "checkpoints.names", "checkpoints.whole_tensors",
             "checkpoints.dtypes", "checkpoints.equation", "merge.weight", "merge.half", "merge.model", *STARTS),
    diagnose=False,
)  # fmt: skip
def test_merged(context: Context, case: VectorCase) -> None:
    """After load_peft and merge_model every tensor of the model is the vector's merged one."""
    model = loaded(context, case)
    merged = context.calling("merge_model", context.subject.merge_model, model)
    if not hasattr(merged, "state_dict"):
        raise WrongType(f"merge_model returned {type(merged).__name__}, expected a module")
    found = dict(merged.state_dict())
    missing = [name for name in case.vector.merged if name not in found]
    if missing:
        raise Deviation(case, "tensors of the merged model", f"{missing[0]} among them", "it is not there")
    same_tensors(context, case, found, case.vector.merged)


@check(
    "checkpoints",
    "major",
    title="what is written in PEFT's format does not mean the model it was written from",
    failure_mode="the saved adapter is another one, or PEFT cannot read it",
    domain=Domain(strategy=drawn(expect=("apply",))),
    against=("paper",),
    applies=has(expect=("apply",)),
    examples=ALL,
    may_refuse=True,
    follows=("checkpoints.scale", "checkpoints.layouts", "checkpoints.names", "checkpoints.whole_tensors",
             "checkpoints.dtypes", "checkpoints.equation"),
    diagnose=False,
)  # fmt: skip
def test_written(context: Context, case: VectorCase) -> None:
    """load_peft and save_peft leave a folder of the same meaning: the same ΔW of the same tensors."""
    model = loaded(context, case)
    with tempfile.TemporaryDirectory(prefix="audit-") as place:
        folder = Path(place) / "saved"
        context.calling("save_peft", context.subject.save_peft, model, folder)
        try:
            base = BaseCheckpoint(case.vector.base)
            adapter = AdapterFolder(folder)
            updates = {n: u for module in adapter.against(base) for n, u in module.updates().items()}
        except Unreadable as why:
            raise Deviation(
                case, "the saved folder", "a readable adapter for its base", "none", note=said(why)
            ) from None
    changed = {n: u.apply(case.vector.untied[n]) for n, u in updates.items()}
    same_tensors(context, case, {**case.vector.untied, **changed}, case.vector.merged)
