"""Kinds of layers, saved and loaded: an adapter on a Conv1D, an embedding or a convolution comes back as it was."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from hypothesis import strategies as st

from harness.cases.kind_cases import KINDS, KindCase, of_kind
from harness.cases.layer_cases import Domain
from harness.compare import rounding
from harness.compare.context import Context
from harness.compare.kinds import Kinds, adapted, on_each_kind, refusable
from harness.compare.offered import need
from harness.compare.saving import load, same_slots
from harness.engine.checks import check
from oracles.variants import Variant


def _in_float32(variant: Variant) -> st.SearchStrategy[KindCase]:
    """As other claims about files: whether a file keeps more digits is not asked."""
    return of_kind("conv1d")(variant).map(lambda case: replace(case, dtype="float32"))


@check(
    "layers",
    "major",
    title="on another kind of layer a saved adapter does not come back as it was",
    failure_mode="what is deployed from the checkpoint would not be what was trained",
    domain=Domain(strategy=_in_float32),
    against=("paper",),
    examples=2,
    follows=("save_load.round_trip", *(f"layers.{kind}" for kind in KINDS)),
    diagnose=False,
    may_refuse=True,
)
def test_save_load(context: Context, case: KindCase) -> None:
    """Loaded onto a fresh layer of the kind, every tensor is bitwise as saved and the output is the same."""
    need(context.subject, case.spec, ("save", "load"))
    on_each_kind(context, case, KINDS, _comes_back)


def _comes_back(context: Context, case: KindCase) -> None:
    layer = adapted(context, case)
    layer.write(case.far(dict.fromkeys(layer.names)))
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
