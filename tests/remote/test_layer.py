"""A remote subject gives bit for bit what the same file gives in process, whatever is done with its layers."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.cases.kind_cases import QUANTISERS, KindCase
from harness.cases.leaf_output import with_leaf_output
from harness.cases.quantised_from import note_quantised
from harness.compare.abilities import Abilities
from harness.subjects.lora_lite import LoraLite
from harness.subjects.remote.proxy import Command, remote_subject
from oracles.implementation import Adapted, AdapterSpec, Implementation, Unsupported
from tests.remote.served import ROOT, served
from tests.remote.subjects.styles import Styles

VARIANTS = sorted(LoraLite.variants)
STYLES = ("fused", "hooked", "odd", "parametrized", "subclassed", "transposed", "wrapped")


@pytest.fixture(scope="module")
def remote() -> Implementation:
    """lora_lite in a process of its own, this interpreter's."""
    torch.set_num_threads(1)
    return remote_subject(Command(Path(sys.executable), ROOT / "harness/subjects/lora_lite.py", ""))


@pytest.fixture(scope="module")
def styles() -> Implementation:
    """Libraries of seven styles in one process; ``source("use", style)`` chooses."""
    torch.set_num_threads(1)
    return served("styles.py", "Styles")


def adapted_by(subject: Implementation, variant: str, dtype: torch.dtype = torch.float32) -> Adapted:
    """A layer with every slot far from its start."""
    torch.manual_seed(5)
    base = nn.Linear(6, 4).to(dtype)
    found = subject.adapt(base, AdapterSpec(variant, rank=2, alpha=3.0))
    for name, slot in sorted(found.slots.items()):
        generator = torch.Generator().manual_seed(len(name))
        slot.put(torch.randn(slot.canonical().shape, generator=generator).to(dtype) + 2)
    return found


def passed(layer: Adapted, x: Tensor) -> dict[str, Any]:
    """What a forward and a backward pass give."""
    x = x.clone().requires_grad_(True)
    y = layer.module(x)
    y.backward(torch.arange(y.numel(), dtype=y.dtype).reshape(y.shape))
    grads = {f"∂{n}": s.canonical_gradient() for n, s in layer.slots.items()}
    layer.module.zero_grad()
    return {"y": y.detach(), "∂x": x.grad, **grads}


def equal(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    """Every entry bit for bit."""
    assert list(actual) == list(expected)
    for name, value in expected.items():
        if isinstance(value, Tensor):
            assert actual[name].dtype == value.dtype, name
            assert torch.equal(actual[name], value), name
        else:
            assert actual[name] == value, name


def everything(subject: Implementation, variant: str) -> dict[str, Any]:
    """Passes, modes, copies, merging and detaching."""
    layer, x = adapted_by(subject, variant), torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    found = {f"first {k}": v for k, v in passed(layer, x).items()}
    found |= {f"strided {k}": v for k, v in passed(layer, x.T.contiguous().T).items()}
    layer.module.eval()
    found["evaluated"] = layer.module(x).detach()
    found["names"] = [n for n, _ in layer.module.named_parameters()]
    found["state"] = list(layer.module.state_dict())
    found["trains"] = {n: p.requires_grad for n, p in layer.module.named_parameters()}
    found["copied"] = copy.deepcopy(layer.module)(x).detach()
    for method in ("merge", "detach"):
        try:
            plain = getattr(subject, method)(layer)
        except Unsupported as why:
            found[method] = str(why)
            continue
        found[method], found[f"{method} x"] = plain.weight.detach().clone(), plain(x).detach()
        layer = adapted_by(subject, variant)
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_lora_lite(variant: str, remote: Implementation) -> None:
    """All of it, for each method."""
    equal(everything(remote, variant), everything(LoraLite(), variant))


@pytest.mark.parametrize("style", STYLES)
def test_libraries_of_other_styles(style: str, styles: Implementation) -> None:
    """Wrappers, hooks, parametrisations, subclasses, slots that are views or functions of the live tensor."""
    here = Styles()
    for subject in (here, styles):
        subject.source("use", style)
    equal(everything(styles, "lora"), everything(here, "lora"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype, remote: Implementation) -> None:
    """Every base dtype goes there and comes back."""
    x = torch.randn(3, 6).to(dtype)
    equal(passed(adapted_by(remote, "dora", dtype), x), passed(adapted_by(LoraLite(), "dora", dtype), x))


def test_training(remote: Implementation) -> None:
    """Steps that an optimiser takes here are taken there."""
    ends = []
    for subject in (remote, LoraLite()):
        layer = adapted_by(subject, "lora")
        tensors = [s.tensor for s in layer.slots.values()]
        optimiser = torch.optim.AdamW(tensors, lr=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            layer.module(torch.ones(2, 6)).square().mean().backward()
            optimiser.step()
        ends.append(
            {"y": layer.module(torch.ones(2, 6)).detach(), **dict(enumerate(t.detach() for t in tensors))}
        )
    equal({str(k): v for k, v in ends[0].items()}, {str(k): v for k, v in ends[1].items()})


def test_the_base_follows(remote: Implementation) -> None:
    """PiSSA leaves its residual in the base's own weight, and detaching gives the weight back, bit for bit."""
    base = nn.Linear(6, 4)
    before = base.weight.detach().clone()
    layer = remote.adapt(base, AdapterSpec("pissa", rank=2, alpha=3.0))
    assert not torch.equal(base.weight, before)
    assert layer.slots["W"].tensor is base.weight
    found = remote.detach(layer)
    assert found is base
    assert type(found) is nn.Linear, "a plain layer computes here"
    assert torch.equal(found.weight, before)


def test_a_hook_that_makes_the_output_a_leaf_is_there_too(remote: Implementation) -> None:
    """Nothing but the hook makes the output of a layer want a gradient whose adapter is frozen."""
    for base, wanted in ((nn.Linear(6, 4), False), (with_leaf_output(nn.Linear(6, 4)), True)):
        layer = remote.adapt(base, AdapterSpec("lora", rank=2))
        for slot in layer.slots.values():
            slot.tensor.requires_grad_(False)
        assert layer.module(torch.ones(3, 6)).requires_grad is wanted


def test_a_folded_convolution(remote: Implementation) -> None:
    """A convolution that was copied and folded there has its stride and padding."""
    found = []
    for subject in (remote, LoraLite()):
        torch.manual_seed(3)
        base = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        layer = subject.adapt(base, AdapterSpec("lora", rank=2, alpha=3.0))  # type: ignore[arg-type]
        layer.slots["B"].put(torch.ones(layer.slots["B"].canonical().shape))
        found.append(subject.merge(layer)(torch.ones(2, 3, 5, 5)).detach())
    assert torch.equal(*found)


def quantised_case(quantiser: str, variant: str) -> KindCase:
    """A layer (6 -> 4) with a bias."""
    spec = AdapterSpec(variant, rank=2, alpha=3.0)
    return KindCase(spec, 6, 4, bias=True, seed=3, kind="quantised", quantiser=quantiser)


@pytest.mark.parametrize("variant", ["lora", "delora"])
@pytest.mark.parametrize("quantiser", QUANTISERS)
def test_a_quantised_layer(quantiser: str, variant: str, remote: Implementation) -> None:
    """It is quantised there again: its passes, what is merged into it and what is taken out again are the same."""
    case, found = quantised_case(quantiser, variant), []
    for subject in (remote, LoraLite()):
        layer = subject.adapt(case.base(), case.spec)
        for slot in layer.slots.values():
            slot.put(torch.ones(slot.canonical().shape) + 1)
        x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
        told = passed(layer, x)
        copied = copy.deepcopy(layer.module)(x).detach()
        merged = subject.merge(layer)(x).detach()  # type: ignore[operator]
        subject.merge_in_place(layer)
        folded = layer.module(x).detach()
        subject.unmerge(layer)
        found.append(
            {**told, "copied": copied, "merged": merged, "folded": folded, "back": layer.module(x).detach()}
        )
    equal(*found)
    assert not torch.equal(found[0]["y"], found[0]["merged"])  # rounded again


def test_a_quantiser_that_is_not_there(remote: Implementation) -> None:
    """An environment without the library takes no layer of it, and says which."""
    base = quantised_case("torchao int8", "lora").base()
    note_quantised(base, "nowhere int8", torch.zeros(4, 6), None)
    with pytest.raises(Unsupported, match="no nowhere in the subject's environment"):
        remote.adapt(base, AdapterSpec("lora", rank=2))


def test_what_is_there_quantises(monkeypatch: pytest.MonkeyPatch) -> None:
    """A case is quantised by a library of the subject's environment."""
    monkeypatch.setattr("harness.compare.abilities.QUANTISERS", ["torchao int8", "bitsandbytes 8 bit"])
    case, told = quantised_case("torchao int8", "lora"), {}
    for there in (frozenset({"torchao"}), frozenset({"bitsandbytes"}), frozenset[str]()):
        subject = LoraLite()
        subject.quantisers = there  # type: ignore[attr-defined]
        known = Abilities(subject, subject.dtypes, subject.inputs)
        told["".join(there)] = known.fitted(case).quantiser
    assert told == {"torchao": "torchao int8", "bitsandbytes": "bitsandbytes 8 bit", "": "torchao int8"}


def test_a_refused_file_is_followed_too(remote: Implementation, tmp_path: Path) -> None:
    """The exception has the name and the words that it has there, and the base is what it is there."""
    base = nn.Linear(6, 4)
    with pytest.raises(BaseException) as told:  # noqa: PT011
        remote.load(base, AdapterSpec("lora"), tmp_path / "missing")
    with pytest.raises(BaseException) as here:  # noqa: PT011
        LoraLite().load(nn.Linear(6, 4), AdapterSpec("lora"), tmp_path / "missing")
    assert type(told.value).__name__ == type(here.value).__name__
    assert str(told.value) == str(here.value)


def test_the_generator_is_handed_over(remote: Implementation) -> None:
    """What is drawn there is drawn from the state here, which goes on from there."""
    drawn = []
    for subject in (remote, LoraLite()):
        torch.manual_seed(11)
        layer = subject.adapt(nn.Linear(6, 4), AdapterSpec("lora", rank=2, dropout=0.5))
        layer.module.train()
        layer.slots["B"].put(torch.ones(4, 2))
        drawn.append({"y": layer.module(torch.ones(5, 6)).detach(), "next": torch.rand(3)})
    equal(*drawn)


def test_a_pickle_holds_no_bytes_of_the_other_process(remote: Implementation) -> None:
    """A pickled stand-in is a reference; the copy itself was made there."""
    layer = adapted_by(remote, "lora")
    held = pickle.dumps(layer.module)
    assert len(held) < 200
    x = torch.ones(2, 6)
    assert torch.equal(pickle.loads(held)(x), layer.module(x))


def test_a_whole_model(remote: Implementation) -> None:
    """Logits, gradients and the state after detaching are those of the same model in process."""
    from harness.cases.tiny_models import ModelCase
    from harness.compare import adapted_model as whole

    case = ModelCase(AdapterSpec("lora", rank=2, alpha=3.0), "llama")
    observed, states = [], []
    for subject in (remote, LoraLite()):
        ours = whole.adapted_by(subject, case)
        ours.write(whole.far(ours, case))
        observed.append({str(k): v for k, v in whole.observe(ours, case).items()})
        whole.take_off(subject, ours)
        states.append({k: v.clone() for k, v in ours.model.state_dict().items()})
    equal(*observed)
    equal(*states)


def test_a_model_with_buffers_that_are_only_there() -> None:
    """Another release of transformers' has some: they are told, and the model answers as in process."""
    from harness.cases.tiny_models import ModelCase
    from harness.compare import adapted_model as whole

    case = ModelCase(AdapterSpec("lora", rank=2, alpha=3.0), "llama")
    observed, buffers = [], []
    for subject in (served("further_buffers.py", "Beside"), LoraLite()):
        ours = whole.adapted_by(subject, case)
        ours.write(whole.far(ours, case))
        observed.append({str(k): v for k, v in whole.observe(ours, case).items()})
        buffers.append("mask" in dict(ours.model.model.named_buffers(recurse=False)))
    equal(*observed)
    assert buffers == [True, False]


def test_a_computed_slot_of_a_copy() -> None:
    """What is written into a copy's slot is written there, and the original keeps its own."""
    subject = served("gated.py", "Library")
    layer = subject.adapt(nn.Linear(3, 4), AdapterSpec("ia3"))  # type: ignore[arg-type]
    twin = copy.deepcopy(layer.module)
    theirs = dataclasses.replace(layer.slots["l"], tensor=dict(twin.named_parameters())["w"])
    theirs.put(torch.full((4,), 3.0))
    assert torch.equal(theirs.tensor, torch.full((4,), 2.0)), "stored as w = l − 1"
    assert torch.equal(theirs.canonical(), torch.full((4,), 3.0))
    assert torch.equal(layer.slots["l"].canonical(), torch.ones(4))
    x = torch.randn(2, 3)
    assert torch.allclose(twin(x), 3 * layer.module(x))


def test_an_eval_of_its_own() -> None:
    """It is called, and what it raises is raised here."""
    layer = served("gated.py", "Slips").adapt(nn.Linear(3, 4), AdapterSpec("ia3"))  # type: ignore[arg-type]
    with pytest.raises(NameError, match="hidden"):
        layer.module.eval()
