"""A recording in the oracle's place: the same answers as the live code, and none that was not recorded."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
import torch
from torch import nn

from harness.cases.profiles import Profile
from harness.engine.session import OF_AUTHORS, Session, load_checks
from harness.subjects import resolve
from oracles import registry
from oracles.authors import available
from oracles.authors.availability import AUTHORS
from oracles.authors.replay import NotRecorded, Replay
from oracles.implementation import AdapterSpec, Implementation
from oracles.mistakes import mistaken
from reports.model import Claim

KINDS = [(kind.variant, kind.oracle) for kind in AUTHORS]
FEW = Profile("few", 6, 0)
# Wrong in the forward, in the start, in a gradient alone, in the factorisation, in a mode, in a role.
WRONG = (
    "lora.sqrt_rank", "lora.gaussian_a", "pissa.unbalanced", "dora.norm_attached", "dora.norm_over_inputs",
    "ia3.bias_not_gated", "ia3.zero_start", "hra.reversed", "hra.unpaired", "hra.constant_norm", "delora.scalar_norm",
)  # fmt: skip


def replayed(variant: str, oracle: str) -> Replay:
    """The recording of an oracle, whether or not its code is here."""
    return Replay(next(a for a in available(variant) if a.id == oracle))


def claims(subject: Implementation, variant: str, oracle: str, recorded: bool) -> dict[str, Claim]:
    """What an author is asked, of its code or of its recording, by claim id."""
    entry = registry.find(oracle, variant)
    session = Session(subject, (variant,), (oracle,), FEW)
    if recorded:
        session._made[entry] = replayed(variant, oracle)
    asked = [c for c in load_checks().values() if c.id in OF_AUTHORS]
    runs = [session.run(key, lambda claim: None) for check in asked for key in session.keys(check)]
    for run in runs:
        run.check = dataclasses.replace(run.check, diagnose=False)  # outcomes are compared, and it takes time
    return {run.id: run.conclude() for run in runs}


def live(variant: str, oracle: str) -> None:
    author = next(a for a in available(variant) if a.id == oracle)
    if author.kind != "live":
        pytest.skip(author.reason)


def outcomes(found: dict[str, Claim]) -> dict[str, tuple[str, str | None]]:
    """Outcome by claim id, with the reason where that is the catalogue's."""
    return {id_: (c.outcome, c.reason if c.outcome == "not_applicable" else None) for id_, c in found.items()}


@functools.cache
def lora_lite() -> Implementation:
    return resolve.resolve("lora_lite").implementation


@pytest.mark.parametrize(("variant", "oracle"), KINDS)
def test_live_and_recorded_judge_lora_lite_alike(variant: str, oracle: str) -> None:
    live(variant, oracle)
    now, then = (claims(lora_lite(), variant, oracle, recorded) for recorded in (False, True))
    assert outcomes(now) == outcomes(then)
    assert {c.outcome for c in then.values()} <= {"pass", "not_applicable"}


@pytest.mark.parametrize("id_", WRONG)
def test_live_and_recorded_judge_a_mistake_alike(id_: str) -> None:
    variant = id_.split(".")[0]
    live(variant, "author")
    subject = mistaken(id_)
    now, then = (claims(subject, variant, "author", recorded) for recorded in (False, True))
    assert outcomes(now) == outcomes(then)


@pytest.mark.parametrize("id_", [id_ for id_ in WRONG if not id_.startswith(("delora", "lora.gaussian"))])
def test_a_recording_catches_a_mistake(id_: str) -> None:
    found = claims(mistaken(id_), id_.split(".")[0], "author", recorded=True)
    assert "fail" in {c.outcome for c in found.values()}


@pytest.mark.parametrize(("variant", "oracle"), KINDS)
def test_a_recording_answers_what_was_recorded(variant: str, oracle: str) -> None:
    oracle_ = replayed(variant, oracle)
    for case in oracle_.cases:
        adapted = oracle_.adapt(case.base(), case.spec)
        x = case.x.clone().requires_grad_(True)
        y = adapted.module(x)
        assert torch.equal(y, case.expected["forward"].to(y.dtype))
        y.backward(case.cotangent.to(y.dtype))
        assert x.grad is not None
        assert torch.equal(x.grad, case.expected["grad.x"].to(x.dtype))
        for name, slot in adapted.slots.items():
            grad = case.expected.get(f"grad.{name}")
            assert slot.tensor.requires_grad == (grad is not None)
            assert grad is None or torch.equal(slot.tensor.grad, grad.to(slot.tensor.dtype))  # type: ignore[arg-type]


def probe() -> tuple[Any, Any]:
    oracle = replayed("lora", "author")
    case = oracle.cases[0]
    return case, oracle.adapt(case.base(), case.spec)


def test_another_input_is_not_recorded() -> None:
    case, adapted = probe()
    with pytest.raises(NotRecorded, match="input"):
        adapted.module(case.x + 1)


def test_another_parameter_is_not_recorded() -> None:
    case, adapted = probe()
    with torch.no_grad():
        adapted.slots["A"].tensor.add_(1)
    with pytest.raises(NotRecorded, match="another A"):
        adapted.module(case.x)


def test_another_cotangent_is_not_recorded() -> None:
    case, adapted = probe()
    with pytest.raises(NotRecorded, match="cotangent"):
        adapted.module(case.x).backward(case.cotangent + 1)


def test_another_base_is_not_recorded() -> None:
    with pytest.raises(NotRecorded, match="base"):
        replayed("lora", "author").adapt(nn.Linear(3, 3), AdapterSpec("lora"))
