"""The catalogue of known wrong implementations, each a small override of the equation with its failure mode.

It serves three times: as broken subjects that the audit must catch, as the diagnosis of a failing claim (the
mistake whose values equal the subject's is named), and as the failure-mode text of the finding. Entries with
``agrees_with`` are no mistakes but a reference's other form; a subject that has it differs, and is not wrong.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from oracles import paper
from oracles.equation import FORMS, Drop, Dropping, Form, Initial, variation
from oracles.implementation import AdapterSpec
from oracles.paper import Forward, Parameters
from oracles.variants import VARIANTS

Severity = Literal[
    "critical", "major", "minor", "none"
]  # as in reports/model.py, which oracles may not import


@dataclass(frozen=True)
class Mistake:
    """One entry: ``forms`` is what :class:`oracles.equation.Equation` takes to become it."""

    id: str
    variant: str
    summary: str
    failure_mode: str
    forms: Mapping[str, Form]
    agrees_with: str | None = None
    documented_by: tuple[str, ...] = ()
    severity: Severity | None = None


_CATALOGUE: dict[str, Mistake] = {}


def _enter(
    id_: str,
    summary: str,
    failure_mode: str,
    *,
    agrees_with: str | None = None,
    documented_by: tuple[str, ...] = (),
    severity: Severity | None = None,
    **changes: Any,
) -> None:
    variant = id_.split(".")[0]
    _CATALOGUE[id_] = Mistake(
        id_,
        variant,
        summary,
        failure_mode,
        variation(variant, **changes),
        agrees_with,
        documented_by,
        severity,
    )


def mistakes_of(variant: str) -> list[Mistake]:
    """The catalogue's entries for a variant, in the order in which a diagnosis tries them."""
    return [m for m in _CATALOGUE.values() if m.variant == variant]


def mistake(id_: str) -> Mistake:
    """One entry. Raises KeyError naming what there is."""
    if id_ not in _CATALOGUE:
        raise KeyError(f"no mistake {id_!r}; there are {', '.join(_CATALOGUE)}")
    return _CATALOGUE[id_]


def catalogue() -> list[Mistake]:
    """All entries."""
    return list(_CATALOGUE.values())


# Overrides that several variants share


def _rescaled(forward: Forward, alpha: Callable[[AdapterSpec], float]) -> Forward:
    """``forward`` seeing another alpha, so that α/r becomes what the mistake computes."""

    def mistaken(
        x: Tensor, W: Tensor, b: Tensor | None, p: Parameters, spec: AdapterSpec, dropped: Tensor
    ) -> Tensor:
        return forward(x, W, b, p, dataclasses.replace(spec, alpha=alpha(spec)), dropped)

    return mistaken


def _rescaled_start(initial: Initial, alpha: Callable[[AdapterSpec], float]) -> Initial:
    return lambda W, spec: initial(W, dataclasses.replace(spec, alpha=alpha(spec)))


def _scaled_bias(
    forward: Forward, factor: Callable[[Parameters, Tensor, AdapterSpec], Tensor | float]
) -> Forward:
    def mistaken(
        x: Tensor, W: Tensor, b: Tensor | None, p: Parameters, spec: AdapterSpec, dropped: Tensor
    ) -> Tensor:
        y = forward(x, W, None, p, spec, dropped)
        return y if b is None else y + b * factor(p, W, spec)

    return mistaken


def _start(variant: str, **values: Callable[[Tensor, AdapterSpec], Tensor]) -> Initial:
    """The right start with some tensors replaced."""

    def initial(W: Tensor, spec: AdapterSpec) -> dict[str, Tensor]:
        right = FORMS[variant].initial(W, spec)
        return {**right, **{name: value(W, spec) for name, value in values.items()}}

    return initial


def _always_drop(x: Tensor, rate: float, training: bool) -> Tensor:
    return nn.functional.dropout(x, rate, training=True)


def _never_drop(x: Tensor, rate: float, training: bool) -> Tensor:
    return x


def _unscaled_drop(x: Tensor, rate: float, training: bool) -> Tensor:
    return nn.functional.dropout(x, rate, training) * (1 - rate if training else 1)


def _drop_rows(x: Tensor, rate: float, training: bool) -> Tensor:
    keep = nn.functional.dropout(torch.ones_like(x[..., :1]), rate, training)
    return x * keep


def _drop_output(y: Tensor, rate: float, training: bool) -> Tensor:
    return nn.functional.dropout(y, rate, training)


def _in_single(y: Tensor, x: Tensor, base: nn.Linear) -> Tensor:
    return y.float()


SCALES: dict[str, tuple[Callable[[AdapterSpec], float], str, str]] = {
    "sqrt_rank": (
        lambda s: s.alpha * math.sqrt(s.rank),
        "α/√r in place of α/r",
        "the update is √r too large, so learning rates and alphas tuned for the method do not carry over",
    ),
    "no_scale": (
        lambda s: float(s.rank),
        "no scale: α is ignored",
        "alpha changes nothing; a checkpoint trained elsewhere with α ≠ r is applied at the wrong strength",
    ),
    "alpha_unscaled": (
        lambda s: s.alpha * s.rank,
        "α in place of α/r",
        "the update grows with the rank, r times too large",
    ),
    "inverse_scale": (
        lambda s: s.rank**2 / s.alpha,
        "r/α in place of α/r",
        "raising alpha weakens the adapter",
    ),
    "integer_scale": (
        lambda s: float(s.alpha // s.rank) * s.rank,
        "α // r, the whole part of α/r",
        "with α < r the adapter is switched off, and with α = 1.5 r it is a third too weak",
    ),
    "scale_squared": (
        lambda s: s.alpha**2 / s.rank,
        "(α/r) applied twice",
        "the update is α/r too large wherever α ≠ r",
    ),
}


def _enter_scales(variant: str) -> None:
    form = FORMS[variant]
    for name, (alpha, summary, failure) in SCALES.items():
        changes: dict[str, Any] = {"forward": _rescaled(form.forward, alpha)}
        if variant == "pissa":  # the factors compensate whatever scale the code believes in
            changes["initial"] = _rescaled_start(form.initial, alpha)
        _enter(f"{variant}.{name}", summary, failure, **changes)


def _enter_dropouts(variant: str) -> None:
    drops: dict[str, tuple[str, str, dict[str, Any]]] = {
        "dropout_ignored": (
            "dropout is accepted and does nothing",
            "the regularisation that the configuration asks for is absent, and nothing says so",
            {"drop": _never_drop},
        ),
        "dropout_in_eval": (
            "dropout stays active in evaluation mode",
            "inference is random and biased",
            {"drop": _always_drop},
        ),
        "dropout_unscaled": (
            "dropped inputs are not divided by 1 − p",
            "the adapter's contribution in training is (1 − p) of that in evaluation",
            {"drop": _unscaled_drop},
        ),
        "dropout_rows": (
            "whole samples are dropped instead of entries",
            "the adapter is switched off for a random subset of the tokens",
            {"drop": _drop_rows},
        ),
        "dropout_on_output": (
            "dropout is applied to the layer's output",
            "the frozen base path is dropped too, so training sees a damaged base model",
            {"drop": _never_drop, "drop_output": _drop_output},
        ),
        "dropout_on_update": (
            "dropout is applied to the adapter's output instead of its input",
            "entries of the update are dropped instead of features: the factors are regularised otherwise",
            {"drop": _never_drop, "dropping": _on_update(FORMS[variant].forward)},
        ),
        "dropout_on_hidden": (
            "dropout is applied to the rank-r activation x Aᵀ instead of the adapter's input",
            "components of the update are dropped instead of features: at a small rank most of it, or none",
            {"drop": _never_drop, "dropping": ON_HIDDEN[variant]},
        ),
    }
    for name, (summary, failure, changes) in drops.items():
        _enter(f"{variant}.{name}", summary, failure, **changes)


def _on_update(forward: Forward) -> Dropping:
    """Dropout on the adapter's contribution, after it has been computed from the whole x."""

    def dropping(
        x: Tensor, W: Tensor, b: Tensor | None, p: Parameters, spec: AdapterSpec, drop: Drop
    ) -> Tensor:
        base = paper.linear(x, p.get("W", W), b)
        return base + drop(forward(x, W, b, p, spec, x) - base)

    return dropping


def _lora_on_hidden(
    x: Tensor, W: Tensor, b: Tensor | None, p: Parameters, spec: AdapterSpec, drop: Drop
) -> Tensor:
    return paper.linear(x, p.get("W", W), b) + paper.scale(spec) * (drop(x @ p["A"].mT) @ p["B"].mT)


def _dora_with(
    hidden: Tensor, x: Tensor, W: Tensor, b: Tensor | None, p: Parameters, spec: AdapterSpec
) -> Tensor:
    """DoRA of the whole x, but for the rank-r activation (..., r), which is given."""
    s = paper.scale(spec)
    g = p["m"] / torch.linalg.vector_norm(W + s * (p["B"] @ p["A"]), dim=1).detach()
    y = g * (x @ W.mT + s * (hidden @ p["B"].mT))
    return y if b is None else y + b


def _dora_on_hidden(
    x: Tensor, W: Tensor, b: Tensor | None, p: Parameters, spec: AdapterSpec, drop: Drop
) -> Tensor:
    return _dora_with(drop(x @ p["A"].mT), x, W, b, p, spec)


def _dora_on_low_rank(
    x: Tensor, W: Tensor, b: Tensor | None, p: Parameters, spec: AdapterSpec, drop: Drop
) -> Tensor:
    return _dora_with(drop(x) @ p["A"].mT, x, W, b, p, spec)


def _delora_on_hidden(
    x: Tensor, W: Tensor, b: Tensor | None, p: Parameters, spec: AdapterSpec, drop: Drop
) -> Tensor:
    a = torch.linalg.vector_norm(p["A"], dim=1).clamp(min=paper.DELORA_CLAMP)
    xi = p["lambda"] / spec.rank / (torch.linalg.vector_norm(p["B"], dim=0).clamp(min=paper.DELORA_CLAMP) * a)
    return paper.linear(x, W, b) + (drop((x * p["w_norm"]) @ p["A"].mT) * xi) @ p["B"].mT


ON_HIDDEN: dict[str, Dropping] = {
    "lora": _lora_on_hidden,
    "pissa": _lora_on_hidden,
    "dora": _dora_on_hidden,
    "delora": _delora_on_hidden,
}


def _enter_common(variant: str) -> None:
    _enter(
        f"{variant}.trainable_bias",
        "the base layer's bias stays trainable",
        "training changes the base model; the saved adapter alone does not reproduce the result",
        trainable_base_bias=True,
    )
    _enter(
        f"{variant}.dead_first_step",
        "no gradient reaches the adapter on the first step",
        "the first optimiser step is lost, and warm-up schedules are off by one",
        dead_until_step=1,
    )
    _enter(
        f"{variant}.output_in_fp32",
        "the output is fp32 whatever the input's dtype",
        "a half-precision model gets a layer that answers in another dtype: the next layer raises or promotes",
        finish=_in_single,
    )


# LoRA


def _normal_like(
    shape: Callable[[Tensor, AdapterSpec], tuple[int, ...]], std: float
) -> Callable[..., Tensor]:
    return lambda W, spec: torch.randn(shape(W, spec), dtype=torch.float64) * std


def _shape_a(W: Tensor, spec: AdapterSpec) -> tuple[int, ...]:
    return spec.rank, W.shape[1]


def _shape_b(W: Tensor, spec: AdapterSpec) -> tuple[int, ...]:
    return W.shape[0], spec.rank


def _uniform_a(factor: float) -> Callable[[Tensor, AdapterSpec], Tensor]:
    def draw(W: Tensor, spec: AdapterSpec) -> Tensor:
        bound = factor / math.sqrt(W.shape[1])
        return (torch.rand(_shape_a(W, spec), dtype=torch.float64) * 2 - 1) * bound

    return draw


def _gaussian_a(W: Tensor, spec: AdapterSpec) -> Tensor:
    return torch.randn(_shape_a(W, spec), dtype=torch.float64) / math.sqrt(W.shape[1])


def _enter_start_of_factors(variant: str) -> None:
    start = _start
    _enter(
        f"{variant}.b_not_zero",
        "B starts at random values instead of zero",
        "the adapted model is not the base model before training",
        initial=start(variant, B=_normal_like(_shape_b, 1e-6)),
    )
    _enter(
        f"{variant}.factors_swapped",
        "A starts at zero and B at random",
        "the roles of the factors are exchanged: learning rates set per factor act on the wrong one",
        initial=start(
            variant,
            A=lambda W, spec: torch.zeros(_shape_a(W, spec), dtype=torch.float64),
            B=_normal_like(_shape_b, 0.1),
        ),
    )
    _enter(
        f"{variant}.a_gain",
        "A is drawn with kaiming_uniform's default gain (a = 0): bound √(6/in) instead of √(1/in)",
        "A starts √6 too large: B's first steps are that much larger",
        initial=start(variant, A=_uniform_a(math.sqrt(6))),
    )
    _enter(
        f"{variant}.gaussian_a",
        "A is drawn from a Gaussian of standard deviation 1/√in, as the paper's text says; the codes draw uniformly",
        "A starts √3 larger than with either code; fine in itself, a different start from the references' code",
        initial=start(variant, A=_gaussian_a),
        agrees_with="LoRA paper §4.1 (random Gaussian for A)" if variant == "lora" else None,
        documented_by=("gaussian", "normal"),
        severity="minor" if variant == "lora" else None,
    )


def _bias_dropped(p: Parameters, W: Tensor, spec: AdapterSpec) -> float:
    return 0.0


_enter_scales("lora")
_enter_start_of_factors("lora")
_enter(
    "lora.bias_scaled",
    "the base bias is multiplied by α/r",
    "the adapted layer differs from the base by a constant from the first step on",
    forward=_scaled_bias(paper.lora, lambda p, W, spec: paper.scale(spec)),
)
_enter(
    "lora.bias_dropped",
    "the base bias is lost",
    "every layer with a bias is shifted",
    forward=_scaled_bias(paper.lora, _bias_dropped),
)
_enter_dropouts("lora")
_enter_common("lora")


# PiSSA


def _svd(W: Tensor, spec: AdapterSpec) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.linalg.svd(W, full_matrices=False))


def _with_residual(W: Tensor, A: Tensor, B: Tensor, s: float) -> dict[str, Tensor]:
    return {"A": A, "B": B, "W": W - s * (B @ A)}


def _minor_components(W: Tensor, spec: AdapterSpec) -> dict[str, Tensor]:
    U, S, Vh = _svd(W, spec)
    root = (S[-spec.rank :] / paper.scale(spec)).sqrt()
    return _with_residual(W, root[:, None] * Vh[-spec.rank :], U[:, -spec.rank :] * root, paper.scale(spec))


def _unbalanced(W: Tensor, spec: AdapterSpec) -> dict[str, Tensor]:
    U, S, Vh = _svd(W, spec)
    r, s = spec.rank, paper.scale(spec)
    return _with_residual(W, (S[:r] / s)[:, None] * Vh[:r], U[:, :r], s)


def _unbalanced_other(W: Tensor, spec: AdapterSpec) -> dict[str, Tensor]:
    U, S, Vh = _svd(W, spec)
    r, s = spec.rank, paper.scale(spec)
    return _with_residual(W, Vh[:r], U[:, :r] * (S[:r] / s), s)


def _uncompensated(residual_scale: Callable[[AdapterSpec], float]) -> Initial:
    def initial(W: Tensor, spec: AdapterSpec) -> dict[str, Tensor]:
        U, S, Vh = _svd(W, spec)
        root = S[: spec.rank].sqrt()
        return _with_residual(
            W, root[:, None] * Vh[: spec.rank], U[:, : spec.rank] * root, residual_scale(spec)
        )

    return initial


def _compensated_in_b(W: Tensor, spec: AdapterSpec) -> dict[str, Tensor]:
    U, S, Vh = _svd(W, spec)
    root, s = S[: spec.rank].sqrt(), paper.scale(spec)
    return _with_residual(W, root[:, None] * Vh[: spec.rank], U[:, : spec.rank] * root / s, s)


def _residual_kept_whole(W: Tensor, spec: AdapterSpec) -> dict[str, Tensor]:
    return {**paper.principal_factors(W, spec), "W": W.clone()}


_UNBALANCED = "the product is right, but the gradients of A and B are those of another factorisation"
_enter(
    "pissa.minor_components",
    "the smallest singular triples are trained, the largest frozen in the residual",
    "this is the opposite of the method (its 'minor components' ablation): the principal directions never move",
    initial=_minor_components,
)
_enter(
    "pissa.unbalanced", "all singular values are in A: B = U, A = S Vᵀ / s", _UNBALANCED, initial=_unbalanced
)
_enter(
    "pissa.unbalanced_b",
    "all singular values are in B: B = U S / s, A = Vᵀ",
    _UNBALANCED,
    initial=_unbalanced_other,
)
_enter(
    "pissa.no_scale_compensation",
    "the factors leave α/r out (B A = U S Vᵀ) and the residual subtracts B A unscaled",
    "with α ≠ r the adapted layer does not start as the base layer",
    initial=_uncompensated(lambda spec: 1.0),
)
_enter(
    "pissa.scaled_residual",
    "the factors leave α/r out, and the residual subtracts (α/r) B A",
    "the layer starts as the base, but α/r of the principal part is trained: the residual is not Eq. (4)'s",
    initial=_uncompensated(paper.scale),
    severity="major",  # the function is right from the start; the authors avoid the question by setting α = r
)
_enter(
    "pissa.compensated_in_one_factor",
    "α/r is divided out of B alone instead of √(α/r) out of each factor",
    _UNBALANCED,
    initial=_compensated_in_b,
)
_enter(
    "pissa.residual_not_subtracted",
    "the principal part is left in the base weight",
    "the adapted layer starts with its principal part doubled",
    initial=_residual_kept_whole,
)
_enter_scales("pissa")
_enter_dropouts("pissa")
_enter_common("pissa")


# DoRA


def _dora(
    norm: Callable[[Tensor, Tensor, Parameters, AdapterSpec], Tensor], bias_scaled: bool = False
) -> Forward:
    """DoRA with another norm; ``norm(W, V, p, spec)`` must broadcast against (out, in)."""

    def forward(
        x: Tensor, W: Tensor, b: Tensor | None, p: Parameters, spec: AdapterSpec, dropped: Tensor
    ) -> Tensor:
        update = paper.scale(spec) * (p["B"] @ p["A"])
        g = p["m"][:, None] / norm(W, W + update, p, spec)
        adapted = dropped @ (g * (W + update) - W).mT
        base = x @ W.mT + adapted
        if b is None:
            return base
        return base + (b * g[:, 0] if bias_scaled else b)

    return forward


def _rows(V: Tensor) -> Tensor:
    return torch.linalg.vector_norm(V, dim=1, keepdim=True)


def _frobenius_start(W: Tensor, spec: AdapterSpec) -> Tensor:
    return torch.full((W.shape[0],), float(torch.linalg.matrix_norm(W)), dtype=W.dtype)


_enter(
    "dora.norm_attached",
    "the gradient flows through ‖V‖ (Eq. (6)) instead of treating it as a constant (§4.3, Eq. (11))",
    "gradients of A and B lose their component along V: training follows another trajectory and needs more memory",
    forward=_dora(lambda W, V, p, spec: _rows(V)),
    documented_by=(
        "dora_simple\\s*=\\s*False",
        "(through|differentiat\\w*|backprop\\w*|gradients?\\b.{0,40})\\W+(through )?the (weight )?norm",
        "norm.{0,40}(not|n't|never).{0,12}detach",
        "(not|n't|without).{0,12}detach\\w*.{0,40}norm",
        "attached norm",
        "norm.{0,30}(takes part|participates|(is )?included|is kept|stays|remains) in the (gradient|graph|backward)",
        "gradients?.{0,12}(flows?|propagates?|pass(es)?) (also )?through.{0,20}norm",
        "(?<!not the )(?<!instead of the )(?<!without the )full gradient",
        "norm.{0,20}attached",
    ),
    severity="major",
)
_enter(
    "dora.norm_over_inputs",
    "one norm per input feature (a column of W) divides, instead of one per output feature",
    "the direction is not the reference's; the paper's ‖·‖_c read literally, which no code does",
    forward=_dora(lambda W, V, p, spec: torch.linalg.vector_norm(V, dim=0, keepdim=True).detach()),
)
_enter(
    "dora.frobenius_norm",
    "one Frobenius norm of V divides every row",
    "rows are no longer normalised: magnitude and direction are not decoupled",
    forward=_dora(lambda W, V, p, spec: torch.linalg.matrix_norm(V).detach().reshape(1, 1)),
    initial=_start("dora", m=_frobenius_start),
)
_enter(
    "dora.bias_scaled",
    "the bias is multiplied by m/‖V‖ with the rest of the output",
    "as soon as m or V moves, every bias moves with it",
    forward=_dora(lambda W, V, p, spec: _rows(V).detach(), bias_scaled=True),
)
_enter(
    "dora.unscaled_norm",
    "the norm is that of W + B A, without α/r",
    "with α ≠ r rows are not normalised: the output's magnitude is not m",
    forward=_dora(lambda W, V, p, spec: _rows(W + p["B"] @ p["A"]).detach()),
)
_enter(
    "dora.norm_of_base",
    "the norm is that of the frozen W, not of W + (α/r) B A",
    "the direction is not normalised: B A changes the magnitude as well",
    forward=_dora(lambda W, V, p, spec: _rows(W).detach()),
)
_enter(
    "dora.magnitude_ones",
    "m starts at one instead of ‖W‖",
    "every row is normalised to length one at the start: the adapted model is not the base model",
    initial=_start("dora", m=lambda W, spec: torch.ones(W.shape[0], dtype=W.dtype)),
)
_enter(
    "dora.dropout_on_low_rank",
    "dropout reaches the low-rank product alone: the correction (g − 1) x Wᵀ sees the whole x",
    "the two halves of the update see different inputs: with the mask of PEFT and the authors both are dropped",
    drop=_never_drop,
    dropping=_dora_on_low_rank,
)
_enter_scales("dora")
_enter_start_of_factors("dora")
_enter_dropouts("dora")
_enter_common("dora")


# (IA)³


def _ia3_bias_not_gated(
    x: Tensor, W: Tensor, b: Tensor | None, p: Parameters, spec: AdapterSpec, dropped: Tensor
) -> Tensor:
    if spec.feedforward:
        return paper.ia3(x, W, b, p, spec, dropped)
    y = (x @ W.mT) * p["l"]
    return y if b is None else y + b


def _ia3_bias_gated_by_mean(
    x: Tensor, W: Tensor, b: Tensor | None, p: Parameters, spec: AdapterSpec, dropped: Tensor
) -> Tensor:
    y = paper.ia3(x, W, None, p, spec, dropped)
    return y if b is None else y + b * p["l"].mean()


def _ia3_wrong_side(
    x: Tensor, W: Tensor, b: Tensor | None, p: Parameters, spec: AdapterSpec, dropped: Tensor
) -> Tensor:
    return paper.ia3(x, W, b, p, dataclasses.replace(spec, feedforward=not spec.feedforward), dropped)


def _ia3_wrong_side_start(W: Tensor, spec: AdapterSpec) -> dict[str, Tensor]:
    return {"l": torch.ones(W.shape[0 if spec.feedforward else 1], dtype=W.dtype)}


def _ia3_one_plus(
    x: Tensor, W: Tensor, b: Tensor | None, p: Parameters, spec: AdapterSpec, dropped: Tensor
) -> Tensor:
    return paper.ia3(x, W, b, {"l": 1 + p["l"]}, spec, dropped)


def _ia3_scaled(
    x: Tensor, W: Tensor, b: Tensor | None, p: Parameters, spec: AdapterSpec, dropped: Tensor
) -> Tensor:
    return paper.ia3(x, W, b, {"l": 1 + (p["l"] - 1) * paper.scale(spec)}, spec, dropped)


def _ia3_zero_start(W: Tensor, spec: AdapterSpec) -> dict[str, Tensor]:
    return {"l": torch.zeros(W.shape[1 if spec.feedforward else 0], dtype=W.dtype)}


_enter(
    "ia3.wrong_side",
    "the gate is on the other side: the input where the output is to be gated, and the reverse",
    "another set of features is rescaled; a checkpoint does not even have the shape",
    forward=_ia3_wrong_side,
    initial=_ia3_wrong_side_start,
)
_enter(
    "ia3.bias_not_gated",
    "the bias is added after the gate instead of being gated with the output",
    "layers with a bias differ from PEFT and from the authors' own gated-output path",
    forward=_ia3_bias_not_gated,
    agrees_with="t-few's general path (`LoRALayer` forward with a low-rank part), which leaves the bias alone",
    documented_by=("bias.{0,30}(not|n't|un)\\W*(gated|scaled)", "without (the )?bias"),
    severity="major",
)
_enter(
    "ia3.bias_gated_by_mean",
    "the bias is multiplied by the gate's mean",
    "layers with a bias are shifted",
    forward=_ia3_bias_gated_by_mean,
)
_enter(
    "ia3.one_plus_gate",
    "the layer is multiplied by 1 + l, and l starts at zero",
    "the function can be the same, but the parameter is not: weight decay and checkpoints mean something else",
    forward=_ia3_one_plus,
    initial=_ia3_zero_start,
)
_enter(
    "ia3.zero_start",
    "the gate starts at zero",
    "the layer is switched off until training opens it",
    initial=_ia3_zero_start,
)
_enter(
    "ia3.scaled_gate",
    "the gate's distance from one is multiplied by α/r",
    "a method without alpha or rank depends on both",
    forward=_ia3_scaled,
)
_enter_common("ia3")


# HRA


def _hra(order: Callable[[int], list[int]], factor: float = 2.0, normalised: bool = True) -> Forward:
    """HRA with another order, factor or norm; ``order(r)``: columns as they meet x, first to last."""

    def forward(
        x: Tensor, W: Tensor, b: Tensor | None, p: Parameters, spec: AdapterSpec, dropped: Tensor
    ) -> Tensor:
        U = p["U"]
        if spec.gram_schmidt:
            Q = paper.gram_schmidt(U)
            return paper.linear(x - factor * (x @ Q) @ Q.mT, W, b)
        for i in order(U.shape[1]):
            u = U[:, i]
            x = x - factor * (x @ u)[..., None] * u / (u @ u if normalised else 1.0)
        return paper.linear(x, W, b)

    return forward


def _last_first(r: int) -> list[int]:
    return list(reversed(range(r)))


def _hra_gated(
    x: Tensor, W: Tensor, b: Tensor | None, p: Parameters, spec: AdapterSpec, dropped: Tensor
) -> Tensor:
    reflected = paper.hra(x, W, None, p, spec, dropped)
    base = x @ W.mT
    y = base + p["gate"] * (reflected - base)
    return y if b is None else y + b


def _hra_gated_start(W: Tensor, spec: AdapterSpec) -> dict[str, Tensor]:
    return {**FORMS["hra"].initial(W, spec), "gate": torch.zeros(1, dtype=W.dtype)}


def _unpaired(W: Tensor, spec: AdapterSpec) -> Tensor:
    bound = 1 / math.sqrt(spec.rank)
    return (torch.rand(W.shape[1], spec.rank, dtype=torch.float64) * 2 - 1) * bound


def _palindrome(W: Tensor, spec: AdapterSpec) -> Tensor:
    right = FORMS["hra"].initial(W, spec)["U"]
    half = right[:, ::2]
    return torch.cat([half, half.flip(1)], dim=1) if spec.rank % 2 == 0 else right


def _hra_biased(
    x: Tensor, W: Tensor, b: Tensor | None, p: Parameters, spec: AdapterSpec, dropped: Tensor
) -> Tensor:
    U = p["U"]
    for i in reversed(range(U.shape[1])):
        u = U[:, i]
        x = x - 2 * (x @ u)[..., None] * u / (u @ u + 6e-5)
    return paper.linear(x, W, b)


def _hra_frozen_norm(
    x: Tensor, W: Tensor, b: Tensor | None, p: Parameters, spec: AdapterSpec, dropped: Tensor
) -> Tensor:
    U = p["U"]
    for i in reversed(range(U.shape[1])):
        u = U[:, i]
        x = x - 2 * (x @ u)[..., None] * u / (u @ u).detach()
    return paper.linear(x, W, b)


def _hra_output_side(
    x: Tensor, W: Tensor, b: Tensor | None, p: Parameters, spec: AdapterSpec, dropped: Tensor
) -> Tensor:
    y = x @ W.mT
    for i in range(p["U"].shape[1]):
        y = paper.reflect(y, p["U"][:, i])
    return y if b is None else y + b


HRA_EPS = 6e-5  # the llama code's configuration


def _hra_llama(
    x: Tensor, W: Tensor, b: Tensor | None, p: Parameters, spec: AdapterSpec, dropped: Tensor
) -> Tensor:
    y = x @ W.mT
    for u in p["U"].mT:
        y = y - 2 * (y @ u)[..., None] * u / (u @ u + HRA_EPS)
    return y if b is None else y + b


def _hra_llama_start(W: Tensor, spec: AdapterSpec) -> dict[str, Tensor]:
    bound = math.sqrt(6 / spec.rank) * HRA_EPS
    return {"U": (torch.rand(W.shape[0], spec.rank, dtype=torch.float64) * 2 - 1) * bound}


def _output_side_start(W: Tensor, spec: AdapterSpec) -> dict[str, Tensor]:
    return FORMS["hra"].initial(W.mT, spec)


_enter(
    "hra.reversed",
    "the reflections are multiplied in reverse order, W H_r … H₁",
    "equal to the reference at the start, where pairs cancel, and nowhere else; checkpoints give other models",
    forward=_hra(lambda r: list(range(r))),
)
_enter(
    "hra.zero_gate",
    "a scalar gate around the reflections starts at zero",
    "the vectors get no gradient on step 0; the layer depends on a parameter that no reference has",
    forward=_hra_gated,
    initial=_hra_gated_start,
    roles={"U": "parameter", "gate": "parameter"},
)
_enter(
    "hra.unpaired",
    "the columns of U are drawn independently instead of in equal pairs",
    "the chain is a random rotation at the start: the adapted model is not the base model",
    initial=_start("hra", U=_unpaired),
)
_enter(
    "hra.palindrome",
    "equal columns are mirrored (u₁ u₂ u₂ u₁) instead of adjacent (u₁ u₁ u₂ u₂)",
    "the identity at the start all the same, but other gradients, and another layout in the checkpoint",
    initial=_start("hra", U=_palindrome),
)
_enter(
    "hra.projection",
    "I − u uᵀ/‖u‖² in place of I − 2 u uᵀ/‖u‖²: a projection, not a reflection",
    "the chain is singular: directions of the input are deleted",
    forward=_hra(_last_first, factor=1.0),
)
_enter(
    "hra.not_normalised",
    "u is not divided by its norm",
    "the factors are not orthogonal: the weight's norm drifts, which the method exists to prevent",
    forward=_hra(_last_first, normalised=False),
)
_enter(
    "hra.constant_norm",
    "‖u‖² is detached from the gradient",
    "u's gradient keeps a radial part: its length drifts, which changes the step size and not the function",
    forward=_hra_frozen_norm,
)
_enter(
    "hra.epsilon",
    "an epsilon of 6e-5 is added to ‖u‖²",
    "short vectors give no orthogonal factor: the chain shrinks what it should only turn",
    forward=_hra_biased,
    agrees_with="the authors' llama code (`oft_r`, eps = 6e-5)",
    documented_by=("eps",),
    severity="minor",
)
_enter(
    "hra.output_side",
    "the reflections act on the output, H_r … H₁ W",
    "another method's parametrisation: U has out rows, and the start and the updates differ",
    forward=_hra_output_side,
    initial=_output_side_start,
    agrees_with="the authors' llama code (reflections on the output side)",
    documented_by=("output side", "output-side", "left"),
    severity="minor",
)
_enter(
    "hra.llama",
    "the reflections act on the output, H_r … H₁ W, with an epsilon, from short vectors that are drawn alone",
    "another method's parametrisation: U has out rows, the start is near the identity and not at it",
    forward=_hra_llama,
    initial=_hra_llama_start,
    agrees_with="the authors' llama code (reflections on the output side, eps = 6e-5)",
    documented_by=("output side", "output-side", "left", "llama"),
    severity="minor",
)
_enter_common("hra")


# DeLoRA


def _delora(
    norm: Callable[[Tensor, Parameters], Tensor],
    strength: Callable[[AdapterSpec], float] = lambda spec: 1 / spec.rank,
    normalise: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Forward:
    """DeLoRA with another weight norm, another factor on λ, or other norms in Ξ."""

    def xi(A: Tensor, B: Tensor) -> Tensor:
        a = torch.linalg.vector_norm(A, dim=1).clamp(min=paper.DELORA_CLAMP)
        return 1 / (a * torch.linalg.vector_norm(B, dim=0).clamp(min=paper.DELORA_CLAMP))

    def forward(
        x: Tensor, W: Tensor, b: Tensor | None, p: Parameters, spec: AdapterSpec, dropped: Tensor
    ) -> Tensor:
        h = (dropped * norm(W, p)) @ p["A"].mT
        factor = p["lambda"] * strength(spec) * (normalise or xi)(p["A"], p["B"])
        return paper.linear(x, W, b) + (h * factor) @ p["B"].mT

    return forward


def _kept(W: Tensor, p: Parameters) -> Tensor:
    return p["w_norm"]


def _joint(A: Tensor, B: Tensor) -> Tensor:
    return 1 / torch.linalg.matrix_norm(B @ A).clamp(min=paper.DELORA_CLAMP)


def _a_only(A: Tensor, B: Tensor) -> Tensor:
    return 1 / torch.linalg.vector_norm(A, dim=1).clamp(min=paper.DELORA_CLAMP)


def _xi_constant(A: Tensor, B: Tensor) -> Tensor:
    a = torch.linalg.vector_norm(A, dim=1).clamp(min=paper.DELORA_CLAMP)
    return (1 / (a * torch.linalg.vector_norm(B, dim=0).clamp(min=paper.DELORA_CLAMP))).detach()


def _none(A: Tensor, B: Tensor) -> Tensor:
    return torch.ones(A.shape[0], dtype=A.dtype)


def _delora_output_norm(
    x: Tensor, W: Tensor, b: Tensor | None, p: Parameters, spec: AdapterSpec, dropped: Tensor
) -> Tensor:
    ones = {**p, "w_norm": torch.ones(W.shape[1], dtype=W.dtype)}
    rows = torch.linalg.vector_norm(W, dim=1)
    update = paper.delora(x, W, None, ones, spec, dropped) - x @ W.mT
    return paper.linear(x, W, b) + update * rows


def _random_b(W: Tensor, spec: AdapterSpec) -> Tensor:
    return (torch.rand(_shape_b(W, spec), dtype=torch.float64) * 2 - 1) / math.sqrt(spec.rank)


def _delora_with_copy(W: Tensor, spec: AdapterSpec) -> dict[str, Tensor]:
    values = {**FORMS["delora"].initial(W, spec), "B": _random_b(W, spec)}
    return {**values, "C": values["A"].clone(), "D": values["B"].clone()}


def _delora_less_copy(
    x: Tensor, W: Tensor, b: Tensor | None, p: Parameters, spec: AdapterSpec, dropped: Tensor
) -> Tensor:
    copy = {**p, "A": p["C"], "B": p["D"]}
    y = paper.linear(x, W, b)
    return paper.delora(x, W, b, p, spec, dropped) - (paper.delora(x, W, b, copy, spec, dropped) - y)


_enter(
    "delora.scalar_norm",
    "the update is scaled by one number, the Frobenius norm of W, instead of one norm per input channel",
    "every input feature is scaled alike; the update is about √in too large and points elsewhere unless all columns "
    "of W have equal norm",
    forward=_delora(lambda W, p: torch.linalg.matrix_norm(W)),
)
_enter(
    "delora.output_norm",
    "one norm per output channel (a row of W) scales the update, instead of one per input channel",
    "the update is weighted along the wrong side of W",
    forward=_delora_output_norm,
)
_enter(
    "delora.no_norm",
    "the update is not scaled by ‖W‖ at all",
    "the bound λ is absolute instead of relative to the weight: layers of different size are adapted unequally",
    forward=_delora(lambda W, p: torch.ones(W.shape[1], dtype=W.dtype)),
)
_enter(
    "delora.lambda_not_over_rank",
    "λ in place of λ/r",
    "the update's norm can reach r λ: the bound that the method promises does not hold",
    forward=_delora(_kept, strength=lambda spec: 1.0),
)
_enter(
    "delora.lambda_over_sqrt_rank",
    "λ/√r in place of λ/r",
    "the update's norm can reach √r λ",
    forward=_delora(_kept, strength=lambda spec: 1 / math.sqrt(spec.rank)),
)
_enter(
    "delora.alpha_scale",
    "the update is multiplied by α as well",
    "a method whose strength is λ depends on alpha",
    forward=_delora(_kept, strength=lambda spec: spec.alpha / spec.rank),
)
_enter(
    "delora.joint_norm",
    "B A is divided by its Frobenius norm instead of each component by ‖b_i‖ ‖a_i‖",
    "one component can take the whole bound: the per-rank decoupling is lost",
    forward=_delora(_kept, normalise=_joint),
)
_enter(
    "delora.a_normalised_only",
    "only the rows of A are normalised",
    "the update's norm is not bounded by λ",
    forward=_delora(_kept, normalise=_a_only),
)
_enter(
    "delora.not_normalised",
    "neither a_i nor b_i is normalised",
    "this is LoRA with a learned scale: no bound, no decoupling",
    forward=_delora(_kept, normalise=_none),
)
_enter(
    "delora.xi_detached",
    "‖a_i‖ and ‖b_i‖ are detached from the gradient",
    "the gradients keep their radial part: lengths drift and the effective learning rate with them",
    forward=_delora(_kept, normalise=_xi_constant),
)
_enter(
    "delora.norm_as_parameter",
    "w_norm is a trainable parameter instead of a persistent buffer",
    "optimisers, parameter counts and weight decay see it; the norm drifts away from the weight's",
    roles={"A": "parameter", "B": "parameter", "lambda": "parameter", "w_norm": "parameter"},
)
_enter(
    "delora.norm_not_saved",
    "w_norm is left out of the saved adapter",
    "a checkpoint loaded on another base takes that base's norms: the update is not the one that was trained",
    not_saved=frozenset({"w_norm"}),
)
_enter(
    "delora.lambda_frozen",
    "λ is a buffer and never trained",
    "the strength stays where the configuration put it",
    roles={"A": "parameter", "B": "parameter", "lambda": "buffer", "w_norm": "buffer"},
)
_enter(
    "delora.lambda_zero",
    "λ starts at zero whatever lambda0 says",
    "A and B get no gradient on step 0, and none until λ has moved away from zero",
    initial=_start("delora", **{"lambda": lambda W, spec: torch.zeros(1, dtype=W.dtype)}),
)
_enter(
    "delora.lambda_zero_random_b",
    "λ starts at zero whatever lambda0 says, with B drawn like A",
    "A and B get no gradient on step 0, and none until λ has moved away from zero",
    initial=_start(
        "delora",
        B=_random_b,
        **{"lambda": lambda W, spec: torch.zeros(1, dtype=W.dtype)},
    ),
)
_enter(
    "delora.frozen_copy",
    "B starts at random like A, and a frozen copy of the start is subtracted",
    "the author's form: the start is the identity all the same, but the function of A and B is another one than PEFT's",
    forward=_delora_less_copy,
    initial=_delora_with_copy,
    roles={
        "A": "parameter",
        "B": "parameter",
        "lambda": "parameter",
        "w_norm": "buffer",
        "C": "buffer",
        "D": "buffer",
    },
    hidden=frozenset({"C", "D"}),
    copies={"C": "A", "D": "B"},
    agrees_with="the author's code (A, B drawn alike, frozen copies C and D)",
    documented_by=("frozen", "copy", "copies", "subtract"),
    severity="minor",
)
_enter_start_of_factors("delora")
_enter_dropouts("delora")
_enter_common("delora")

assert set(VARIANTS) == {m.variant for m in _CATALOGUE.values()}, "every variant has its mistakes"
