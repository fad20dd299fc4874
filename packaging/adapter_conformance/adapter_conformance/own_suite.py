"""The claims inside a test suite of one's own: one test per claim, its record in `item.user_properties`."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from adapter_conformance import house

if TYPE_CHECKING:
    from harness.engine.session import Session
    from oracles.implementation import Implementation
    from reports.model import Claim, Key

Test = Callable[..., Any]


class AskedClaim:
    """One claim of a subject: call it to ask. Fails, skips or passes as a test does; ``record`` is what came of it."""

    def __init__(self, session: Session, key: Key) -> None:
        self._session, self.key = session, key
        self.id = key.id
        self.record: Claim | None = None

    def __call__(self) -> None:
        """Ask it, with torch on one thread so that sums have one order."""
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            self._session.run(self.key, self._keep).run()
        finally:
            torch.set_num_threads(threads)

    def _keep(self, record: Claim) -> None:
        self.record = record

    def __repr__(self) -> str:
        return self.id


def parametrize_with_claims(
    subject: Implementation,
    *,
    variants: Sequence[str] | None = None,
    oracles: Sequence[str] | None = None,
    checks: Callable[[str], bool] = lambda id_: True,
    profile: str = "quick",
) -> Callable[[Test], Test]:
    """Parametrize a test over the claims of ``subject``, as ``claim``, which the test calls.

        @parametrize_with_claims(MySubject())
        def test_adapters(claim):
            claim()

    ``variants``, ``oracles``: ids, None for all; ``checks``: which checks, by their ids; ``profile``: quick, default or
    deep. The claim's id, outcome, ratio, threshold, reason and mistake, and the whole record as JSON, are in the test's
    ``user_properties`` (and so in ``--junitxml``). Raises ValueError for a selection of nothing, and house.Occupied.
    """
    house.enter()
    session = _session(subject, variants, oracles, profile)
    asked = [AskedClaim(session, key) for key in session.planned() if checks(key.check)]
    if not asked:
        raise ValueError(f"no claim of {subject.name} is left: variants {variants!r}, oracles {oracles!r}")
    mark = pytest.mark.parametrize("claim", asked, ids=[a.id for a in asked])
    return lambda test: mark(_recording(test))


def _session(
    subject: Implementation, variants: Sequence[str] | None, oracles: Sequence[str] | None, profile: str
) -> Session:
    from harness.cases.profiles import PROFILES, Profile
    from harness.engine.checks import load_checks
    from harness.engine.session import Session
    from oracles import registry
    from oracles.variants import VARIANTS

    if profile not in PROFILES:
        raise ValueError(f"profile {profile!r}: expected one of {', '.join(PROFILES)}")
    load_checks()
    chosen = tuple(v for v in VARIANTS if v in subject.variants and v in (variants or VARIANTS))
    ids = tuple(id_ for id_ in registry.ids() if oracles is None or id_ in oracles)
    made = Profile(profile, PROFILES[profile], 0, caps=profile == "quick")
    where = f"{type(subject).__module__}:{type(subject).__qualname__}"
    return Session(subject, chosen, ids, made, ref=where)


def _recording(test: Test) -> Test:
    """The test, with what its claim came to put on its item."""

    @functools.wraps(test)
    def wrapped(*args: Any, request: pytest.FixtureRequest, claim: AskedClaim, **fixtures: Any) -> Any:
        __tracebackhide__ = True
        if asks_request:
            fixtures["request"] = request
        try:
            return test(*args, claim=claim, **fixtures)
        finally:
            if claim.record is not None:
                request.node.user_properties.extend(_properties(claim.record))

    signature = inspect.signature(test)
    if "claim" not in signature.parameters:
        raise ValueError(f"{test.__name__} takes no argument `claim`, which is what it is parametrized with")
    asks_request = "request" in signature.parameters
    more = [] if asks_request else [inspect.Parameter("request", inspect.Parameter.KEYWORD_ONLY)]
    wrapped.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), *more]
    )
    return wrapped


def _properties(record: Claim) -> list[tuple[str, Any]]:
    from reports.plain_values import claim_to_plain

    mistake = record.diagnosis.mistake if record.diagnosis else None
    told = {
        "claim": record.id, "outcome": record.outcome, "ratio": record.ratio, "threshold": record.threshold,
        "reason": record.reason, "mistake": mistake,
    }  # fmt: skip
    named = [(f"audit.{key}", value) for key, value in told.items() if value is not None]
    return [*named, ("audit.record", json.dumps(claim_to_plain(record)))]
