"""The authors' code itself, where it is synced; loralib is installed, so that LoRA is live everywhere."""

from __future__ import annotations

import functools
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from oracles.authors import Author, available, cases, loader
from oracles.authors.availability import AUTHORS
from oracles.authors.delora import DeloraAuthor
from oracles.authors.dora import DoraAuthor
from oracles.authors.family import RecordedCase
from oracles.authors.ia3 import Ia3Author
from oracles.implementation import AdapterSpec, Unsupported
from refs import catalog as catalogue
from refs.errors import CatalogError
from refs.locate import cache_folder, cache_path
from tests.authors.test_recordings import read

CATALOG = catalogue.load()
KINDS = [(kind.variant, kind.oracle) for kind in AUTHORS]


@functools.cache
def live(variant: str, oracle: str) -> Author:
    """The live oracle, or a skip that says what is missing."""
    author = next(a for a in available(variant) if a.id == oracle)
    if author.kind == "recorded":
        pytest.skip(author.reason)
    assert author.kind == "live", author.reason
    return author


def base(out: int = 6, in_features: int = 4, dtype: torch.dtype = torch.float64) -> nn.Linear:
    generator = torch.Generator().manual_seed(3)
    layer = nn.Linear(in_features, out, dtype=dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer


def spec(variant: str, oracle: str, rank: int = 2) -> AdapterSpec:
    return AdapterSpec(variant, rank, alpha=rank, lambda0=3.0, gram_schmidt=oracle == "author_llama_gs")


def tensors(case: RecordedCase) -> dict[str, torch.Tensor]:
    inputs = {"weight": case.weight, "x": case.x, "cotangent": case.cotangent}
    return {**inputs, **{f"at {n}": t for n, t in case.parameters.items()}, **case.expected}


@pytest.mark.parametrize(("variant", "oracle"), KINDS)
def test_live_and_recorded_agree_claim_by_claim(variant: str, oracle: str) -> None:
    now, then = live(variant, oracle).cases(), read(f"{variant}-{oracle}")
    assert [(c.id, c.spec, c.initial, c.state) for c in now] == [
        (c.id, c.spec, c.initial, c.state) for c in then
    ]
    for case, was in zip(now, then, strict=True):
        found, wanted = tensors(case), tensors(was)
        assert list(found) == list(wanted)
        for name, tensor in found.items():
            assert tensor.dtype == wanted[name].dtype, (case.id, name)
            error = (tensor - wanted[name]).double().norm()
            limit = 200 * torch.finfo(tensor.dtype).eps * (1 + wanted[name].double().norm())
            assert error <= limit, f"{case.id} {name}: {error:.1e} above {limit:.1e}"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("variant", "oracle"), KINDS)
def test_an_author_neither_touches_the_base_nor_leaves_a_trace(
    variant: str, oracle: str, dtype: torch.dtype
) -> None:
    author = live(variant, oracle).implementation()
    layer = base(dtype=dtype)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    loader._module.cache_clear()
    modules, arguments, threads = dict(sys.modules), list(sys.argv), torch.get_default_dtype()
    adapted = author.adapt(layer, spec(variant, oracle))
    new = {name for name in sys.modules if sys.modules[name] is not modules.get(name)}
    assert not any(
        n.startswith((loader.PACKAGE, "PIL", "matplotlib", "bitsandbytes", "peft")) for n in new
    ), new
    assert (sys.argv, torch.get_default_dtype()) == (arguments, threads)
    out = adapted.module(torch.ones(2, 4, dtype=dtype))
    assert out.dtype == dtype
    out.sum().backward()
    assert all(torch.equal(layer.state_dict()[name], tensor) for name, tensor in before.items())
    assert all(p.requires_grad and p.grad is None for p in layer.parameters())
    trained = {id(s.tensor) for s in adapted.slots.values() if s.tensor.requires_grad}
    assert {id(p) for p in adapted.module.parameters() if p.requires_grad} == trained


@pytest.mark.parametrize(("variant", "oracle"), KINDS)
def test_saved_and_loaded_is_the_same_function(variant: str, oracle: str, tmp_path: Path) -> None:
    author = live(variant, oracle).implementation()
    adapted = author.adapt(base(), spec(variant, oracle))
    with torch.no_grad():
        for number, slot in enumerate(adapted.slots.values(), start=1):
            slot.tensor.add_(torch.linspace(0.1, number, slot.tensor.numel()).view_as(slot.tensor))
    author.save(adapted, tmp_path / "adapter.pt")
    again = author.load(base(), spec(variant, oracle), tmp_path / "adapter.pt")
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    fresh = author.adapt(base(), spec(variant, oracle)).module(x)
    assert torch.equal(adapted.module(x), again.module(x))
    assert not torch.allclose(adapted.module(x), fresh)


def test_another_variant_is_unsupported() -> None:
    with pytest.raises(Unsupported, match="lora/author is lora, not dora"):
        live("lora", "author").implementation().adapt(base(), AdapterSpec("dora"))


@pytest.mark.parametrize(
    ("variant", "oracle", "asked", "why"),
    [
        ("hra", "author", AdapterSpec("hra", 3), "odd rank"),
        ("hra", "author_nlu", AdapterSpec("hra", 3), "odd rank"),
        ("hra", "author_llama", AdapterSpec("hra", 2, gram_schmidt=True), "without Gram-Schmidt"),
        ("hra", "author_llama_gs", AdapterSpec("hra", 2), "with Gram-Schmidt"),
        ("pissa", "author", AdapterSpec("pissa", 2, alpha=4), "sets alpha to the rank"),
        ("pissa", "author", AdapterSpec("pissa", 5, alpha=5), "fewer singular values"),
    ],
)
def test_what_an_author_does_not_offer_is_unsupported(
    variant: str, oracle: str, asked: AdapterSpec, why: str
) -> None:
    with pytest.raises(Unsupported, match=why):
        live(variant, oracle).implementation().adapt(base(), asked)


def test_half_precision_where_the_author_cannot() -> None:
    with pytest.raises(Unsupported, match=r"cannot run in torch\.bfloat16"):
        live("hra", "author").implementation().adapt(base(dtype=torch.bfloat16), AdapterSpec("hra", 2))


@pytest.mark.parametrize("as_shipped", [True, False])
def test_delora_as_shipped_never_moves_the_weight(as_shipped: bool) -> None:
    live("delora", "author")
    adapted = DeloraAuthor(as_shipped=as_shipped).adapt(base(), spec("delora", "author"))
    eye = torch.eye(4, dtype=torch.float64)
    start, A = adapted.module(eye).detach().clone(), adapted.slots["A"].tensor.detach().clone()
    optimizer = torch.optim.SGD([s.tensor for s in adapted.slots.values() if s.tensor.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        adapted.module(eye).square().sum().backward()
        optimizer.step()
    assert not torch.equal(adapted.slots["A"].tensor, A)
    assert torch.equal(adapted.module(eye), start) == as_shipped


def test_the_general_path_of_ia3_leaves_the_bias_alone() -> None:
    live("ia3", "author")
    zero = torch.zeros(4, dtype=torch.float64)
    for general, factor in ((False, 2.0), (True, 1.0)):
        layer = base()
        adapted = Ia3Author(general=general).adapt(layer, AdapterSpec("ia3"))
        with torch.no_grad():
            adapted.slots["l"].tensor.fill_(2.0)
        assert torch.equal(adapted.module(zero), factor * layer.bias)


@pytest.mark.parametrize("simple", [True, False])
def test_dora_detaches_its_norm_when_simple(simple: bool) -> None:
    """Scaling V = W + s B A changes nothing, so the undetached gradient is orthogonal to V in every row."""
    live("dora", "author")
    adapted = DoraAuthor(simple=simple).adapt(base(), AdapterSpec("dora", rank=4, alpha=4.0))
    with torch.no_grad():
        adapted.slots["A"].tensor.copy_(torch.eye(4, dtype=torch.float64))
    (adapted.module(torch.eye(4, dtype=torch.float64)) ** 3).sum().backward()
    V, grad = base().weight, adapted.slots["B"].tensor.grad
    assert grad is not None
    assert ((grad * V).sum(dim=1).abs().max() < 1e-9) == (not simple)


def test_an_unknown_oracle_is_refused() -> None:
    with pytest.raises(CatalogError, match="there is no oracle `author_none`"):
        cases("author_none", "hra")


def test_a_file_that_was_tampered_with_is_absent_and_the_others_stay(tmp_path: Path) -> None:
    live("hra", "author")
    cache = tmp_path / "cache"
    shutil.copytree(cache_folder(), cache)
    path = cache_path(CATALOG.reference("orig_hra_nlu.py"), cache)
    path.write_bytes(path.read_bytes().replace(b"2 *", b"3 *", 1))
    kinds = {author.id: author for author in available("hra", cache=cache)}
    assert {i: a.kind for i, a in kinds.items() if a.kind != "live"} == {"author_nlu": "absent"}
    assert kinds["author_nlu"].reason.startswith("orig_hra_nlu.py was changed")
