"""Kinds of layers, saved and loaded: an adapter on a Conv1D, an embedding or a convolution comes back as it was."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from harness.cases.kind_cases import KINDS, KindCase, in_dtype
from harness.cases.layer_cases import Domain
from harness.compare import rounding
from harness.compare.context import Context
from harness.compare.kinds import Kinds, far, on_each_kind, refusable
from harness.compare.offered import need
from harness.compare.saving import load, same_slots
from harness.engine.checks import check


@check(
    "layers",
    "major",
    title="on another kind of layer a saved adapter does not come back as it was",
    failure_mode="what is deployed from the checkpoint would not be what was trained",
    domain=Domain(strategy=in_dtype("float32")),  # whether a file keeps more digits is not asked
    against=("paper",),
    examples=2,
    follows=("save_load.round_trip",),
    diagnose=False,
    may_refuse=True,
)
def test_save_load(context: Context, case: KindCase) -> None:
    """Loaded onto a fresh layer of the kind, every tensor is bitwise as saved and the output is the same."""
    need(context.subject, case.spec, ("save", "load"))
    on_each_kind(context, case, KINDS, _comes_back)


def _comes_back(context: Context, case: KindCase) -> None:
    layer = far(context, case)
    loaded = _saved_and_loaded(context, case, layer)
    same_slots(context, case, layer.layer, loaded.layer)
    with torch.no_grad():
        wanted, actual = layer(case.x).double(), loaded(case.x).double()
    size = rounding.roundoff(case.torch_dtype) * float(wanted.norm())
    context.judge(case, "output after loading", actual, wanted, size)


def _saved_and_loaded(context: Context, case: KindCase, layer: Kinds) -> Kinds:
    with tempfile.TemporaryDirectory(prefix="audit-") as folder:
        path = Path(folder) / "adapter"
        with refusable(f"saving {case.what}"):
            context.calling("save", context.subject.save, layer.adapted, path)
        with refusable(f"loading {case.what}"):
            return Kinds(load(context, case.base(), case, path), case)
