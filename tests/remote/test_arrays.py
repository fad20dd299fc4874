"""A library of arrays: through numpy in process and in a process of its own, the same; wrong ones are caught."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from harness.engine.session import load_references
from harness.subjects.arrays import from_arrays
from oracles.implementation import AdapterSpec, Implementation, Unsupported
from tests.remote.served import served
from tests.remote.subjects.numpy_lora import NumpyLora
from tests.subjects.judged import QUICK, audit, once

ASKED = ("forward.random_parameters", "forward.gradients", "init.seeded", "merge.weight", "merge.detach",
         "save_load.round_trip", "training.sgd", "dropout.active")  # fmt: skip


class WithoutScale(NumpyLora):
    """Forgets α/r on the way back."""

    def vjp(self, adapted, x, G, training, seed):  # type: ignore[no-untyped-def]
        found = super().vjp(adapted, x, G, training, seed)
        return {**found, "B": found["B"] * adapted["spec"].rank / adapted["spec"].alpha}


class BiasTrained(NumpyLora):
    """The layer's own bias is among what trains."""

    def parameters(self, adapted):  # type: ignore[no-untyped-def]
        return {**super().parameters(adapted), **({} if adapted["b"] is None else {"bias": adapted["b"]})}

    def assign(self, adapted, values):  # type: ignore[no-untyped-def]
        own = {{"bias": "b"}.get(name, name): value for name, value in values.items()}
        super().assign(adapted, own)

    def vjp(self, adapted, x, G, training, seed):  # type: ignore[no-untyped-def]
        found = super().vjp(adapted, x, G, training, seed)
        return {**found, "bias": G.reshape(-1, G.shape[-1]).sum(0)}


class OneScaleWide(NumpyLora):
    """It has no other alpha than the rank, and A starts √6 too large."""

    def nearest(self, spec):  # type: ignore[no-untyped-def]
        return dataclasses.replace(spec, alpha=float(spec.rank), rslora=False)

    def adapt(self, W, b, spec, seed):  # type: ignore[no-untyped-def]
        if spec.alpha != spec.rank:
            raise Unsupported("alpha is the rank")
        made = super().adapt(W, b, spec, seed)
        return {**made, "A": made["A"] * W.dtype.type(np.sqrt(6))}


@pytest.fixture(scope="module")
def remote() -> Implementation:
    """The file in a process of its own."""
    load_references()
    torch.set_num_threads(1)
    return served("numpy_lora.py", "NumpyLora")


@pytest.mark.parametrize("where", ["here", "there"])
def test_a_right_one_passes(where: str, remote: Implementation) -> None:
    """Forward, gradients, seeds, merging, files, training, dropout."""
    subject = remote if where == "there" else from_arrays(NumpyLora())
    claims = once(subject, ["lora"], lambda c: c.id in ASKED, QUICK)
    assert {c.check for c in claims} == set(ASKED)
    assert [(c.id, c.reason) for c in claims if c.outcome != "pass"] == []


def test_a_wrong_gradient_fails() -> None:
    """What ``vjp`` gets wrong is the library's."""
    claims = once(from_arrays(WithoutScale()), ["lora"], lambda c: c.id == "forward.gradients", QUICK)
    assert [c.outcome for c in claims] == ["fail"]


def test_a_bias_that_trains_is_the_base_s_and_no_tensor_of_the_adapter() -> None:
    wanted = ("shapes.canonical", "shapes.frozen_base")
    found = audit(from_arrays(BiasTrained()), ["lora"], checks=lambda c: c.id in wanted).findings
    assert [f.title for f in found] == ["the base layer's bias stays trainable"]


def test_a_start_is_named_where_there_is_no_other_alpha_than_the_rank() -> None:
    claims = once(from_arrays(OneScaleWide()), ["lora"], lambda c: c.id == "init.distribution", QUICK)
    (claim,) = (c for c in claims if c.outcome == "fail")
    assert claim.diagnosis
    assert claim.diagnosis.mistake == "lora.a_gain"


def test_both_ways_are_one(remote: Implementation) -> None:
    """The same values bit for bit."""
    outputs = []
    for subject in (remote, from_arrays(NumpyLora())):
        torch.manual_seed(2)
        layer = subject.adapt(nn.Linear(4, 3), AdapterSpec("lora", rank=2, alpha=3.0))
        layer.slots["B"].put(torch.ones(3, 2))
        x = torch.randn(5, 4, requires_grad=True)
        layer.module(x).sum().backward()
        outputs.append((layer.module(x).detach(), x.grad, layer.slots["A"].tensor.grad))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*outputs, strict=True))


def test_what_numpy_lacks_is_not_offered(remote: Implementation) -> None:
    """A bfloat16 base, and what only torch has."""
    with pytest.raises(Unsupported, match=r"numpy has no bfloat16"):
        remote.adapt(nn.Linear(4, 3).bfloat16(), AdapterSpec("lora"))
    layer = remote.adapt(nn.Linear(4, 3), AdapterSpec("lora"))
    with pytest.raises(Unsupported, match=r"is not cast by torch"):
        layer.module.half()


def test_a_folder_of_arrays_is_no_pickle(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """numpy's archives are zip files like torch's, without code in them."""
    from harness.compare.saved_files import is_pickle

    np.savez(tmp_path / "a.npz", A=np.ones(2))
    torch.save({"A": torch.ones(2)}, tmp_path / "a.pt")
    assert not is_pickle(tmp_path / "a.npz")
    assert is_pickle(tmp_path / "a.pt")
