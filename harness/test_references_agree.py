"""The references audited against each other: what they disagree in is catalogued, and what is catalogued differs."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from harness.cases.profiles import Profile as Examples
from harness.engine.session import OF_AUTHORS, claims_for
from harness.measures.measuring import MEASURES, apart, author_of, case
from harness.plugin.hooks import AUDIT
from oracles import registry
from oracles.authors import Author, RecordedCase
from oracles.authors.family import family
from oracles.disagreements import Disagreement, disagreements, explaining
from oracles.peft import Peft
from oracles.seeding import restored_rng
from oracles.variants import VARIANTS
from reports.model import Claim

FEW = Examples("references", 2, 0)
SIZE_TOLERANCE = 0.02  # an entry says its size in three digits


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Narrowed by --variant and --oracle as the claims are; a quick run asks the subject, not PEFT, all over again."""
    built = metafunc.config.stash.get(AUDIT, None)
    variants = built.session.variants if built else tuple(VARIANTS)
    oracles = built.session.oracles if built else tuple(registry.ids())
    asked = [e for e in registry.entries() if e.is_author and e.id in oracles]
    authors = [(v, e.id) for e in asked for v in variants if v in e.variants]
    papers = [(v, "paper") for v in variants] if "paper" in oracles else []
    entries = [d for d in disagreements() if d.variant in variants and authors]
    of_peft = [] if built and built.session.profile.name == "quick" else authors + papers
    for fixture, values in (("oracle", of_peft), ("author", authors), ("entry", entries)):
        if fixture in metafunc.fixturenames:
            ids = [v.id if isinstance(v, Disagreement) else "-".join(v) for v in values]
            metafunc.parametrize(fixture if fixture == "entry" else ("variant", fixture), values, ids=ids)


# What PEFT takes at all is found out once for every author.
one_peft = cache(Peft)


def test_peft_differs_where_the_catalogue_says(variant: str, oracle: str) -> None:
    """PEFT as the subject, against an author or the equations: each check holds or is catalogued, never both."""
    if oracle != "paper":
        author_of(variant, oracle)
    claims = claims_for(
        one_peft(), variants=[variant], oracles=[oracle], checks=lambda c: c.id in OF_AUTHORS, profile=FEW
    )
    asked = [c for c in claims if c.outcome != "not_applicable" or c.cause == "references_disagree"]
    wanted = {c.id: known.id if (known := explaining(c.check, variant, oracle)) else "pass" for c in asked}
    assert asked
    assert {c.id: _outcome(c) for c in asked} == wanted


def _outcome(claim: Claim) -> str:
    """The catalogue's id where the references disagree, else the outcome."""
    excused = claim.outcome == "not_applicable" and claim.cause == "references_disagree"
    return claim.detail or "" if excused else claim.outcome


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


def test_every_entry_is_measured(entry: Disagreement) -> None:
    """The catalogued size is what is measured now: an entry that no longer differs, or differently, fails."""
    with restored_rng(0):
        found = MEASURES[entry.id]()
    assert found == pytest.approx(entry.size, rel=SIZE_TOLERANCE, abs=1e-12), entry.how_much


def test_nothing_else_is_measured() -> None:
    """Every measure belongs to an entry."""
    assert set(MEASURES) == {d.id for d in disagreements()}
