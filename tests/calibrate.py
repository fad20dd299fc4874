"""How the thresholds were found: right implementations against references, and errors injected on purpose.

    python -m tests.calibrate [EXAMPLES]      # 170 examples x about 60 claims: ten thousand per variant

Prints the largest ratio per check and threshold over two right subjects (the equations and lora_lite) against PEFT
and the equations, and the smallest relative error of the contribution that `dtype.forward` catches.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

import torch
from rich.console import Console
from rich.table import Table

from harness.cases.profiles import Profile
from harness.compare.context import Context
from harness.compare.outcome import Deviation
from harness.engine.session import claims_for, load_checks
from harness.subjects import resolve
from oracles.equation import Equation
from oracles.implementation import Implementation
from oracles.peft import Peft
from oracles.variants import VARIANTS
from reports.model import Claim
from tests.harness.test_detection import generic, off_by

MEASURED = ("init", "scale", "step0", "forward", "dtype", "training", "merge")


def worst_ratios(subject: Implementation, examples: int) -> list[Claim]:
    """Every claim that has a ratio, at ``examples`` cases each."""
    chosen = claims_for(
        subject,
        checks=lambda c: c.info.aspect in MEASURED and c.domain.strategy is None,
        profile=Profile("calibration", examples, 101),
    )
    return [c for c in chosen if c.outcome != "not_applicable"]


def table_of(claims: Iterable[Claim]) -> Table:
    """Per check: the largest ratio, where, and the threshold it stayed below."""
    table = Table("check", "largest ratio", "variant", "oracle", "threshold", title="right against right")
    rows: dict[str, Claim] = {}
    for claim in claims:
        if claim.outcome != "pass":
            Console().print(f"ALARM {claim.id}: {claim.reason}")
        if claim.ratio is not None and claim.ratio >= (
            rows[claim.check].ratio or 0 if claim.check in rows else 0
        ):
            rows[claim.check] = claim
    for check, c in sorted(rows.items()):
        table.add_row(check, f"{c.ratio:.2f}", c.variant, c.oracle, f"{c.threshold:g}")
    return table


def smallest_error(variant: str, dtype: str) -> float:
    """The smallest ε of 10^(k/4) that is caught at every one of the generic cases."""
    check, found = load_checks()["dtype.forward"], float("inf")
    for k in range(0, -33, -1):
        context = Context(off_by(variant, 10 ** (k / 4)), Peft(), VARIANTS[variant])
        if not all(_caught(check.function, context, case) for case in generic(variant, dtype)):
            return found
        found = 10 ** (k / 4)
    return found


def _caught(function: object, context: Context, case: object) -> bool:
    try:
        function(context, case)  # type: ignore[operator]
    except Deviation:
        return True
    return False


def main(examples: int) -> None:
    """Both tables."""
    torch.set_num_threads(1)
    subjects = (Equation(), resolve.resolve("lora_lite").implementation)
    claims = [claim for subject in subjects for claim in worst_ratios(subject, examples)]
    Console().print(table_of(claims))
    Console().print({v: sum(c.examples for c in claims if c.variant == v) for v in VARIANTS})
    table = Table("variant", "float32", "bfloat16", "float16", title="smallest error caught by dtype.forward")
    for variant in VARIANTS:
        table.add_row(
            variant, *(f"{smallest_error(variant, d):.1e}" for d in ("float32", "bfloat16", "float16"))
        )
    Console().print(table)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 170)
