"""The cases of an oracle: whatever Hypothesis draws where it runs live, the recorded ones where it is replayed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from hypothesis import strategies as st
from torch import Tensor

from harness.cases.layer_cases import Case, Domain, allowed_dtypes, cases
from oracles.authors import RecordedCase
from oracles.oracle import NotRecorded, Oracle
from oracles.variants import Variant
from reports.model import CheckInfo


@dataclass(frozen=True)
class Recorded(Case):
    """A case that an author's code was recorded on: base, input, cotangent and parameters are the recorded ones."""

    record: RecordedCase | None = field(default=None, compare=False, repr=False)

    @property
    def recording(self) -> RecordedCase:
        """The record, which is always there."""
        assert self.record is not None
        return self.record

    @cached_property
    def weight(self) -> Tensor:
        return self.recording.weight.to(self.torch_dtype)

    @cached_property
    def bias_vector(self) -> Tensor | None:
        b = self.recording.bias
        return None if b is None else b.to(self.torch_dtype)

    @cached_property
    def input(self) -> Tensor:
        return self.recording.x.to(self.torch_dtype)

    @cached_property
    def cotangent(self) -> Tensor:
        return self.recording.cotangent.to(self.torch_dtype)

    def far(self, names: Mapping[str, Any]) -> dict[str, Tensor]:
        """The recorded parameters, in float64."""
        return {n: value.double() for n, value in self.recording.parameters.items() if n in names}

    def but(self, **changes: Any) -> Case:  # type: ignore[override]
        """This case in another dtype; with anything else replaced it is no recorded one any more."""
        if set(changes) == {"dtype"}:
            return dataclasses.replace(self, dtype=changes["dtype"])
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(Case)}
        return Case(**own).but(**changes)

    def describe(self) -> dict[str, Any]:
        """The case in plain values, with the recording's name in place of the seed."""
        told = {name: value for name, value in super().describe().items() if name != "seed"}
        return {**told, "recorded case": self.recording.id}


def recorded(record: RecordedCase) -> Recorded:
    """A recording as a case."""
    out, in_ = record.weight.shape
    batch, dtype = tuple(record.x.shape[:-1]), str(record.weight.dtype).removeprefix("torch.")
    return Recorded(record.spec, in_, out, record.bias is not None, batch, dtype, record=record)


def cases_of(
    oracle: Oracle, check: CheckInfo, variant: Variant, domain: Domain
) -> tuple[st.SearchStrategy[Case], int | None]:
    """The cases on which ``oracle`` can be asked, and how many there are (None: any number).

    A recording offers its own, at their start or far from it; what runs live is asked anything it takes.
    """
    if oracle.cases is None:
        drawn = cases(variant, domain)
        return drawn.map(lambda c: dataclasses.replace(c, spec=oracle.nearest(c.spec))), None
    fitting = [c for c in map(recorded, oracle.cases) if _fits(c, check, variant, domain)]
    if not fitting:
        raise NotRecorded(f"{oracle.name}: no such case was recorded")
    return st.sampled_from(fitting), len(fitting)


def _fits(case: Recorded, check: CheckInfo, variant: Variant, domain: Domain) -> bool:
    """Whether the check can be asked on this recording: dtype, mode, size, and start or far from it."""
    at_start = check.aspect not in ("forward", "scale") or check.id == "forward.at_init"
    if case.recording.initial != at_start or case.dtype not in allowed_dtypes(variant, domain):
        return False
    if min(case.out_features, case.in_features) < domain.sizes[0]:
        return False
    if not variant.in_domain(case.out_features, case.in_features, case.spec):
        return False
    return all(variant.option(mode).of(case.spec) == (mode == domain.mode) for mode in variant.modes)
