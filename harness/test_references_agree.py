"""The references audited against each other: what they disagree in is catalogued, and what is catalogued differs."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from harness.cases.profiles import Profile as Examples
from harness.cases.tiny_models import ModelCase
from harness.engine.session import OF_AUTHORS, claims_for
from harness.plugin.hooks import AUDIT
from oracles import registry
from oracles.authors import Author, RecordedCase, available
from oracles.authors.base import plain
from oracles.authors.delora import DeloraAuthor
from oracles.authors.dora import DoraAuthor
from oracles.authors.family import compute, effective_weight, family
from oracles.authors.ia3 import Ia3Author
from oracles.disagreements import Disagreement, disagreements, explaining
from oracles.implementation import Adapted, AdapterSpec, Implementation
from oracles.mistakes import mistaken
from oracles.peft import Peft
from oracles.seeding import restored_rng
from oracles.variants import VARIANTS, paper
from oracles.variants.hra import reflect
from refs import catalog as catalogue
from refs.locate import locate
from reports.model import Claim

FEW = Examples("references", 2, 0)
SIZE_TOLERANCE = 0.02  # an entry says its size in three digits


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Narrowed by --variant and --oracle as the claims are."""
    built = metafunc.config.stash.get(AUDIT, None)
    variants = built.session.variants if built else tuple(VARIANTS)
    oracles = built.session.oracles if built else tuple(registry.ids())
    asked = [e for e in registry.entries() if e.is_author and e.id in oracles]
    authors = [(v, e.id) for e in asked for v in variants if v in e.variants]
    papers = [(v, "paper") for v in variants] if "paper" in oracles else []
    entries = [d for d in disagreements() if d.variant in variants and authors]
    for fixture, values in (("oracle", authors + papers), ("author", authors), ("entry", entries)):
        if fixture in metafunc.fixturenames:
            ids = [v.id if isinstance(v, Disagreement) else "-".join(v) for v in values]
            metafunc.parametrize(fixture if fixture == "entry" else ("variant", fixture), values, ids=ids)


def author_of(variant: str, oracle: str) -> Author:
    """One author's oracle; an absent one skips the test: its claims are unverified and say why."""
    author = next(a for a in available(variant) if a.id == oracle)
    if author.kind == "absent":
        pytest.skip(author.reason)
    return author


def test_peft_differs_where_the_catalogue_says(variant: str, oracle: str) -> None:
    """PEFT as the subject, against an author or the equations: each check holds or is catalogued, never both."""
    if oracle != "paper":
        author_of(variant, oracle)
    claims = claims_for(
        Peft(), variants=[variant], oracles=[oracle], checks=lambda c: c.id in OF_AUTHORS, profile=FEW
    )
    asked = [c for c in claims if c.outcome != "not_applicable" or c.cause == "references_disagree"]
    wanted = {c.id: known.id if (known := explaining(c.check, variant, oracle)) else "pass" for c in asked}
    assert asked
    assert {c.id: _outcome(c) for c in asked} == wanted


def _outcome(claim: Claim) -> str:
    """The catalogue's id where the references disagree, else the outcome."""
    excused = claim.outcome == "not_applicable" and claim.cause == "references_disagree"
    return claim.detail or "" if excused else claim.outcome


@cache
def case(variant: str, oracle: str, name: str) -> RecordedCase:
    """One case of an author's family, computed now or recorded."""
    author = author_of(variant, oracle)
    if author.kind == "recorded":
        return next(c for c in author.cases() if c.id == name)
    return compute(author.make(), next(c for c in family(variant, oracle) if c.id == name))


def equation(author: Author, at: RecordedCase) -> tuple[Tensor, Tensor]:
    """(y, dL/dx) of the author's equation at a case."""
    form = author.make().forms[author.variant].forward
    x = at.x.clone().requires_grad_(True)
    y = form(x, at.weight, at.bias, at.parameters, at.spec, x)
    return y.detach(), torch.autograd.grad(y, x, at.cotangent)[0]


def test_an_authors_code_computes_its_equation(variant: str, author: str) -> None:
    """Output and input gradient of the authors' code are those of the equation that stands for it, to 1e-9."""
    held = author_of(variant, author)
    names = [c.id for c in family(variant, author) if c.dtype == torch.float64 and not c.initial][-2:]
    for at in (case(variant, author, name) for name in names):
        for found, key in zip(equation(held, at), ("forward", "grad.x"), strict=True):
            assert apart(found, at.expected[key]) < 1e-9, (at.id, key)


# How much the references disagree: one measure per catalogued entry

MEASURES: dict[str, Callable[[], float]] = {}


def measures(id_: str) -> Callable[[Callable[[], float]], Callable[[], float]]:
    """Register the function that measures an entry."""

    def register(function: Callable[[], float]) -> Callable[[], float]:
        MEASURES[id_] = function
        return function

    return register


def test_every_entry_is_measured(entry: Disagreement) -> None:
    """The catalogued size is what is measured now: an entry that no longer differs, or differently, fails."""
    with restored_rng(0):
        found = MEASURES[entry.id]()
    assert found == pytest.approx(entry.size, rel=SIZE_TOLERANCE, abs=1e-12), entry.how_much


def test_nothing_else_is_measured() -> None:
    """Every measure belongs to an entry."""
    assert set(MEASURES) == {d.id for d in disagreements()}


def apart(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b||."""
    return float((a.detach().double() - b.detach().double()).norm() / b.detach().double().norm())


def base(out: int = 6, in_: int = 8, dtype: torch.dtype = torch.float64, bias: bool = False) -> nn.Linear:
    """A linear layer from torch's generator."""
    b = torch.randn(out, dtype=torch.float64).to(dtype) if bias else None
    return plain((torch.randn(out, in_, dtype=torch.float64) / in_**0.5).to(dtype), b)


def peft_at(at: RecordedCase, names: tuple[str, ...]) -> Tensor:
    """PEFT's output with the author's parameters written into it."""
    adapted = Peft().adapt(at.base(), at.spec)
    write(adapted, {name: at.parameters[name] for name in names})
    return adapted.module(at.x).detach()


def write(adapted: Adapted, values: dict[str, Tensor]) -> None:
    """Canonical values into their slots."""
    with torch.no_grad():
        for name, value in values.items():
            slot = adapted.slots[name]
            slot.view(slot.tensor).copy_(value)


def value(adapted: Adapted, name: str) -> Tensor:
    """A slot's canonical value."""
    slot = adapted.slots[name]
    return slot.view(slot.tensor).detach()


@measures("lora.gaussian_a")
def _gaussian_a() -> float:
    made = [
        w.adapt(base(64, 512), AdapterSpec("lora", 64)) for w in (Peft(), author_of("lora", "author").make())
    ]
    entries = [value(adapted, "A").flatten() for adapted in made]
    assert all(float(a.abs().max()) <= 512**-0.5 for a in entries)
    kurtosis = [float((a**4).mean() / (a**2).mean() ** 2) for a in entries]
    return max(kurtosis, key=lambda k: abs(k - 1.8))


@measures("lora.adapter_dtype")
def _adapter_dtype() -> float:
    spec = AdapterSpec("lora", 4)
    theirs = author_of("lora", "author").make().adapt(base(dtype=torch.bfloat16), spec)
    assert value(theirs, "A").dtype == torch.bfloat16
    A = value(Peft().adapt(base(dtype=torch.bfloat16), spec), "A")
    assert A.dtype == torch.float32
    return float((A.bfloat16().float() == A).double().mean())


@measures("pissa.residual")
def _residual() -> float:
    spec, layer, x = AdapterSpec("pissa", 2, 2.0), base(4, 6, torch.float32), torch.randn(5, 6)
    kept = case("pissa", "author", "6x4-r2-init-float32")
    assert "base_layer.weight" in kept.state
    adapted = Peft().adapt(layer, spec)
    with tempfile.TemporaryDirectory() as folder:
        Peft().save(adapted, Path(folder))
        loaded = Peft().load(plain(value(adapted, "W"), None), spec, Path(folder))
    return apart(loaded.module(x).detach(), adapted.module(x).detach())


@measures("pissa.alpha")
def _alpha() -> float:
    layer = base(dtype=torch.float32)
    sizes = [
        value(Peft().adapt(plain(layer.weight, None), AdapterSpec("pissa", 2, alpha)), "A").norm()
        for alpha in (8.0, 2.0)
    ]
    return float(sizes[0] / sizes[1])


@measures("dora.norm_axis")
def _norm_axis() -> float:
    W, B, A = base().weight.detach(), torch.randn(6, 2).double(), torch.randn(2, 8).double()
    V = W + 0.3 * B @ A
    by_row, by_column = (W.norm(dim=d, keepdim=True) * V / V.norm(dim=d, keepdim=True) for d in (1, 0))
    adapted = Peft().adapt(plain(W, None), AdapterSpec("dora", 2, 0.6))
    write(adapted, {"A": A, "B": B})
    assert apart(effective_weight(adapted.module, 8, torch.float64), by_row) < 1e-9
    return apart(by_column, by_row)


@measures("dora.full_gradient")
def _full_gradient() -> float:
    at = case("dora", "author", "8x8-r4-far-float64")
    p = {name: tensor.clone().requires_grad_(True) for name, tensor in at.parameters.items()}
    V = at.weight + paper.scale(at.spec) * p["B"] @ p["A"]
    y = paper.linear(at.x, p["m"][:, None] * V / V.norm(dim=1, keepdim=True), at.bias)
    full = torch.autograd.grad(y, p["B"], at.cotangent)[0]
    if author_of("dora", "author").kind == "live":
        shipped = DoraAuthor(simple=False).adapt(at.base(), at.spec)
        write(shipped, dict(at.parameters))
        found = torch.autograd.grad(shipped.module(at.x), shipped.slots["B"].tensor, at.cotangent)[0]
        assert apart(found, full) < 1e-9
    return apart(full, at.expected["grad.B"])


@measures("dora.initial_dtype")
def _initial_dtype() -> float:
    at = case("dora", "author", "16x12-r6-init-bfloat16")
    exact = at.weight.double().norm(dim=1)
    ours = value(Peft().adapt(at.base(), at.spec), "m")
    errors = [float(((m.double() - exact) / exact).abs().max()) for m in (ours, at.parameters["m"])]
    assert errors[1] == pytest.approx(errors[0])
    return errors[0]


@measures("dora.one_dimension")
def _one_dimension() -> float:
    spec = AdapterSpec("dora", 2)
    author = author_of("dora", "author")
    if author.kind == "live":
        assert author.make().adapt(base(), spec).module(torch.randn(8, dtype=torch.float64)).dim() == 1
    return float(Peft().adapt(base(), spec).module(torch.randn(8, dtype=torch.float64)).dim())


@measures("ia3.general_path")
def _general_path() -> float:
    layer, spec, x = base(bias=True), AdapterSpec("ia3"), torch.randn(1, 8).double()
    gate = torch.rand(6).double() + 1.5
    general: Implementation = mistaken("ia3.bias_not_gated")
    if author_of("ia3", "author").kind == "live":
        general = Ia3Author(general=True)
    both = [who.adapt(plain(layer.weight, layer.bias), spec) for who in (Peft(), general)]
    for adapted in both:
        write(adapted, {"l": gate})
    ours, theirs = (adapted.module(x).detach() for adapted in both)
    return float((ours - theirs).norm() / ((gate - 1) * layer.bias.detach()).norm())


@measures("ia3.frozen_gate")
def _frozen_gate() -> float:
    _live("ia3")
    layer, x = base(), torch.randn(3, 8).double()
    adapted = Ia3Author().adapt(layer, AdapterSpec("ia3"))
    write(adapted, {"l": torch.full((6,), 2.0)})
    assert apart(adapted.module(x), layer(x)) > 0.9
    adapted.slots["l"].tensor.requires_grad_(False)
    return float((adapted.module(x) - layer(x)).detach().norm())


@measures("ia3.feedforward_targets")
def _feedforward_targets() -> float:
    _live("ia3")
    config = json.loads(
        locate(catalogue.load().reference("orig_ia3_config.json")).read_text(encoding="utf-8")
    )
    assert re.fullmatch(config["lora_layers"], "wi_1")
    return float(sum(bool(re.fullmatch(config["lora_layers"], name)) for name in ("wi", "wo")))


def _gated(architecture: str, ending: str) -> float:
    """How many layers of that name PEFT's (IA)³ adapts by default, in each of the model's two blocks."""
    found = Peft().adapt_model(ModelCase(AdapterSpec("ia3"), architecture).base(), AdapterSpec("ia3"))
    return sum(name.endswith(ending) for name in found) / 2


@measures("ia3.query_for_key")
def _query_for_key() -> float:
    assert _gated("qwen2", "k_proj") == 0
    assert _gated("llama", "q_proj") == 0
    return _gated("qwen2", "q_proj")


@measures("ia3.attention_output")
def _attention_output() -> float:
    return _gated("bert", "attention.output.dense")


@measures("hra.output_side")
def _output_side() -> float:
    at = case("hra", "author_llama", "8x8-r4-far-float64")
    return apart(at.expected["forward"], peft_at(at, ("U",)))


@measures("hra.epsilon")
def _epsilon() -> float:
    at = case("hra", "author_llama", "16x12-r6-init-float64")
    y = at.x @ at.weight.mT
    for u in at.parameters["U"].mT:
        y = reflect(y, u)
    return apart(at.expected["forward"], y if at.bias is None else y + at.bias)


@measures("hra.unpaired_start")
def _unpaired_start() -> float:
    at = case("hra", "author_llama", "16x12-r6-init-float64")
    assert apart(Peft().adapt(at.base(), at.spec).module(at.x), at.base()(at.x)) < 1e-9
    return apart(at.expected["forward"], at.base()(at.x))


@measures("hra.gram_schmidt_start")
def _gram_schmidt_start() -> float:
    at = case("hra", "author_llama_gs", "16x12-r6-init-float64")
    flipped = at.base().weight.detach() * torch.tensor([-1.0] * 6 + [1.0] * 10).double()[:, None]
    assert apart(at.expected["effective_weight"], flipped) < 1e-9
    adapted = Peft().adapt(at.base(), at.spec)
    assert not apart(adapted.module(at.x), at.base()(at.x)) < 0.1  # NaN where the noise is exactly zero
    first, second = value(adapted, "U")[:, 0], value(adapted, "U")[:, 1]
    rest = second - (first @ second) / (first @ first) * first
    return float(rest.norm() / second.norm())


@measures("delora.frozen_copy")
def _frozen_copy() -> float:
    at = case("delora", "author", "8x8-r4-far-float64")
    return apart(at.expected["forward"], peft_at(at, ("A", "B", "lambda")))


@measures("delora.lambda_on_both")
def _lambda_on_both() -> float:
    at = case("delora", "author", "8x8-r4-init-float64")
    assert float(at.expected["grad.lambda"].abs()) < 1e-9
    p = {
        **at.parameters,
        "w_norm": at.weight.norm(dim=0),
        "lambda": at.parameters["lambda"].clone().requires_grad_(True),
    }
    y = VARIANTS["delora"].form.forward(
        at.x, at.weight, None, p, at.spec, at.x
    )  # Eq. (9): the frozen term is a constant
    return abs(float(torch.autograd.grad(y, p["lambda"], at.cotangent)[0]))


@measures("delora.initial_b")
def _initial_b() -> float:
    at = case("delora", "author", "8x8-r4-init-float64")
    assert not value(Peft().adapt(at.base(), at.spec), "B").any()
    return float(at.parameters["B"].abs().max())


@measures("delora.norms_recomputed")
def _norms_recomputed() -> float:
    at, form = case("delora", "author", "8x8-r4-far-float64"), DeloraAuthor.form().forward
    sizes = [
        (form(at.x, k * at.weight, None, at.parameters, at.spec, at.x) - k * at.x @ at.weight.mT).norm()
        for k in (1, 2)
    ]
    return float(sizes[1] / sizes[0])


@measures("delora.clamp")
def _clamp() -> float:
    adapted, x = Peft().adapt(layer := base(), AdapterSpec("delora", 1)), torch.randn(3, 8).double()
    b, sizes, plain_y = torch.randn(6, 1).double(), [], layer(x).detach()
    for length in (5e-5, 1.0):
        write(adapted, {"B": b / b.norm() * length})
        sizes.append(float((adapted.module(x).detach() - plain_y).norm()))
    return sizes[0] / sizes[1]


@measures("delora.aliasing")
def _aliasing() -> float:
    _live("delora")
    moved = []
    for shipped in (True, False):
        adapted = DeloraAuthor(as_shipped=shipped).adapt(base(), AdapterSpec("delora", 2))
        before, A = effective_weight(adapted.module, 8, torch.float64), value(adapted, "A").clone()
        _train(adapted, torch.randn(16, 8).double(), torch.randn(16, 6).double())
        assert float((value(adapted, "A") - A).abs().max()) > 0.01
        moved.append(float((effective_weight(adapted.module, 8, torch.float64) - before).abs().max()))
    assert moved[1] > 0.01
    return moved[0]


def _train(adapted: Adapted, x: Tensor, target: Tensor) -> None:
    optimiser = torch.optim.AdamW(
        [s.tensor for s in adapted.slots.values() if s.tensor.requires_grad], lr=1e-2
    )
    for _ in range(20):
        optimiser.zero_grad()
        (adapted.module(x) - target).square().mean().backward()
        optimiser.step()


def _live(variant: str) -> None:
    """Skip where the author's file itself is needed, in a state that is not recorded, and is not here."""
    author = author_of(variant, "author")
    if author.kind != "live":
        pytest.skip(f"not recorded, and {author.reason}")
