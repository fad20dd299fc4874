"""Hand-made runs: small, readable, and with everything a rule of the reports looks at."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from reports.model import (
    CheckInfo,
    Claim,
    Declaration,
    Diagnosis,
    Key,
    OracleInfo,
    Prior,
    PriorFinding,
    PriorVariant,
    Run,
    Subject,
    VariantInfo,
    Witness,
)

HERE = Path(__file__).parent
ORACLES = (
    OracleInfo("peft", None, "live", "PEFT", package="peft", version="0.21.2", licence="Apache-2.0"),
    OracleInfo(
        "author", "delora", "recorded", "ExplainableML/DeLoRA",
        repo="ExplainableML/DeLoRA", commit="82bfcb01" * 5, recorded_on="2026-11-22",
    ),
    OracleInfo("paper", None, "equation", "equations"),
)  # fmt: skip
VARIANTS = {
    "lora": VariantInfo("lora", "LoRA", "arXiv 2106.09685v2", "y = x Wᵀ + b + (α/r) drop(x) Aᵀ Bᵀ"),
    "dora": VariantInfo("dora", "DoRA", "arXiv 2402.09353", "y = x (diag(m / ‖V‖_row) V)ᵀ + b"),
    "ia3": VariantInfo("ia3", "(IA)³", "arXiv 2205.05638v2", "y = l ⊙ (x Wᵀ + b)"),
    "delora": VariantInfo("delora", "DeLoRA", "arXiv 2503.18225v2", "y = x Wᵀ + b + (λ/r) …"),
}


def info(id_: str, severity: Any, title: str, failure_mode: str, *follows: str) -> CheckInfo:
    """A check; its aspect is the first part of its id."""
    return CheckInfo(id_, id_.split(".")[0], severity, f"Does {id_} hold?", title, failure_mode, follows)


FORWARD = "forward.random_parameters"
CHECKS = {
    c.id: c
    for c in (
        info("shapes.canonical", "major", "Other tensors than the references'.", "No exchange of files."),
        info("init.identity", "critical", "Not the base layer at first.", "Training starts off."),
        info("step0.gradients", "critical", "The first gradients differ.", "Wrong first step.", FORWARD),
        info("forward.random_parameters", "critical", "The output differs.", "Wrong outputs."),
        info("forward.modes", "critical", "A mode computes something else.", "Wrong outputs in that mode."),
        info("dropout.active", "major", "Dropout is accepted and ignored.", "The option does nothing."),
        info("dtype.output", "minor", "The output has another dtype.", "Casts are needed.", FORWARD),
        info("training.sgd", "critical", "SGD ends elsewhere.", "Other models.", FORWARD),
        info("save_load.round_trip", "major", "A saved adapter comes back changed.", "The adapter is lost."),
    )
}  # fmt: skip


def claim(
    check: str, variant: str = "lora", oracle: str = "peft", outcome: Any = "pass", **more: Any
) -> Claim:
    """A claim; one that passes has a ratio of 1.23456 against 30, one that fails a witness."""
    if outcome in ("fail", "declared"):
        case = {"in": 2, "out": 1, "rank": 1, "alpha": 4.0, "dtype": "float32", "bias": False}
        more.setdefault("witness", Witness(case, "contribution", "0.731", "1.034"))
        more.setdefault("ratio", 2.94e6)
    more.setdefault("threshold", 30.0)
    more.setdefault("ratio", 1.23456 if outcome == "pass" else None)
    aspect = check.split(".")[0]
    key = Key(check, variant, more.get("mode"), oracle)
    return Claim(key.id, variant, aspect, check, oracle, outcome, examples=20, **more)


def no_mode(check: str = "forward.modes", variant: str = "lora", option: str = "feedforward") -> Claim:
    """A claim whose mode the subject does not offer."""
    why = {"reason": f"{option} is refused", "cause": "mode_missing", "detail": option}
    return claim(check, variant, outcome="not_applicable", **why)


def plan(*claims: Claim) -> tuple[Key, ...]:
    """What these claims were before they were asked."""
    return tuple(Key(c.check, c.variant, c.mode, c.oracle) for c in claims)


def agreeing(check: str, variant: str = "lora", oracle: str = "author") -> Claim:
    """A claim that holds against an oracle which is catalogued to differ from the reference of record."""
    reason = "the references disagree here (some.entry): the subject agrees with this one"
    return claim(check, variant, oracle, reason=reason, cause="references_disagree", detail="some.entry")


def diagnosis(mistake: str = "delora.scalar_norm", **more: Any) -> Diagnosis:
    """A diagnosis from the mistakes catalogue."""
    summary = "The update is scaled by one number, the Frobenius norm of W."
    return Diagnosis(
        mistake, summary, "Every input feature is scaled alike.", 3, 3, **{"source": "catalogue", **more}
    )


def declaration(check: str, variant: str = "lora", oracle: str = "*", **more: Any) -> Declaration:
    """A declared deviation, by default documented and occurring."""
    given = {"reason": "by design", "words": ("by design",), "documented": True, "occurred": True, **more}
    return Declaration(check, variant, oracle, **given)


def run(*claims: Claim, docstring: str = "", **more: Any) -> Run:
    """A run of these claims (default: two that pass) over the variants they name."""
    asked = claims or (claim("init.identity"), claim("forward.random_parameters"))
    asked_about = {c.variant for c in asked}
    names = [v for v in VARIANTS if v in asked_about] + sorted(asked_about - set(VARIANTS))
    subject = Subject(
        "lora_lite", "0.1.0", "lora_lite",
        sources={(v, "forward"): (HERE / "sample.py", "Sample.forward") for v in names},
        docstrings=dict.fromkeys(names, docstring),
    )  # fmt: skip
    environment = {"python": "3.11", "torch": "2.13.0", "peft": "0.21.2", "transformers": "5.23.0"}
    made = Run(
        subject, ORACLES, environment, {"name": "quick", "examples": 20, "seed": 0},
        tuple(VARIANTS[v] for v in names if v in VARIANTS), CHECKS, tuple(asked), root=HERE.parents[1],
    )  # fmt: skip
    return dataclasses.replace(made, **more)


def prior(variant: str, verdict: Any, *found: PriorFinding) -> Prior:
    """A prior review of one variant."""
    return Prior("round one", {variant: PriorVariant(variant, verdict, found)})
