"""Mistakes that can be made in several methods: of the scale, of dropout, of the start of two factors, of training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from oracles.implementation import AdapterSpec
from oracles.variants.paper import linear
from oracles.variants.record import OWN_OUT, OWN_RANK, Call, Mistake, Severity

Value = Callable[[Tensor, AdapterSpec], Tensor]


# α/r


def scales(variant: str) -> list[Mistake]:
    """The scale computed otherwise; replaces the part ``scale``, an AdapterSpec's number."""
    remedy = "multiply the update by α/r, a true division of alpha by the rank"
    return [
        Mistake(f"{variant}.{name}", summary, failure, {"scale": scale}, remedy)
        for name, scale, summary, failure in (
            (
                "sqrt_rank",
                lambda s: s.alpha * math.sqrt(s.rank) / s.rank,
                "α/√r in place of α/r",
                "the update is √r too large, so learning rates and alphas tuned for the method do not carry over",
            ),
            (
                "no_scale",
                lambda s: 1.0,
                "no scale: α is ignored",
                "alpha changes nothing; a checkpoint trained elsewhere with α ≠ r is applied at the wrong strength",
            ),
            (
                "alpha_unscaled",
                lambda s: s.alpha,
                "α in place of α/r",
                "the update grows with the rank, r times too large",
            ),
            (
                "inverse_scale",
                lambda s: s.rank / s.alpha,
                "r/α in place of α/r",
                "raising alpha weakens the adapter",
            ),
            (
                "integer_scale",
                lambda s: float(s.alpha // s.rank),
                "α // r, the whole part of α/r",
                "with α < r the adapter is switched off, and with α = 1.5 r it is a third too weak",
            ),
            (
                "scale_squared",
                lambda s: (s.alpha / s.rank) ** 2,
                "(α/r) applied twice",
                "the update is α/r too large wherever α ≠ r",
            ),
            (
                "divided_twice",
                lambda s: s.alpha / s.rank**2,
                "α/r² in place of α/r: divided by the rank twice",
                "the update is r times too small",
            ),
        )
    ]


# Dropout


def _always(t: Tensor, rate: float, training: bool) -> Tensor:
    return nn.functional.dropout(t, rate, training=True)


def _never(t: Tensor, rate: float, training: bool) -> Tensor:
    return t


def _unscaled(t: Tensor, rate: float, training: bool) -> Tensor:
    return nn.functional.dropout(t, rate, training) * (1 - rate if training else 1)


def _rows(t: Tensor, rate: float, training: bool) -> Tensor:
    return t * nn.functional.dropout(torch.ones_like(t[..., :1]), rate, training)


def _scaled_in_evaluation(t: Tensor, rate: float, training: bool) -> Tensor:
    return nn.functional.dropout(t, rate, training) * (1 if training else 1 - rate)


def dropouts(variant: str) -> list[Mistake]:
    """Dropout that acts otherwise (the part ``mask``) or elsewhere (``place``)."""
    return [*_masks(variant), *_places(variant)]


def _masks(variant: str) -> list[Mistake]:
    return [
        Mistake(f"{variant}.{name}", summary, failure, {"mask": mask}, remedy)
        for name, mask, summary, failure, remedy in (
            (
                "dropout_ignored",
                _never,
                "dropout is accepted and does nothing",
                "the regularisation that the configuration asks for is absent",
                "pass the adapter branch's input through a dropout of the configured rate",
            ),
            (
                "dropout_in_eval",
                _always,
                "dropout stays active in evaluation mode",
                "inference would be random, or another function than the trained one",
                "drop in training mode only",
            ),
            (
                "dropout_unscaled",
                _unscaled,
                "dropped inputs are not divided by 1 − p",
                "the adapter's contribution in training is (1 − p) of that in evaluation",
                "divide what is kept by 1 − p, as torch's dropout does",
            ),
            (
                "dropout_rows",
                _rows,
                "whole samples are dropped instead of entries",
                "the adapter is switched off for a random subset of the tokens",
                "draw the mask for each entry of the input, not for each sample",
            ),
        )
    ]


# Where dropout is, as a docstring says it: that it is not there states nothing.
DROPS = r"drop(?:(?!\bnot\b|\bnever\b|n't|\bno\b).){0,80}\b"
PLACES_IN_WORDS = {
    "everything": (rf"{DROPS}(entire|whole) (input|layer)", rf"{DROPS}(base|frozen) (path|layer)"),
    "update": (rf"{DROPS}after B\b", rf"{DROPS}(path|branch|update|adapter)('s)? output"),
}


def _places(variant: str) -> list[Mistake]:
    return [
        Mistake(
            f"{variant}.{name}",
            summary,
            failure,
            {"place": place},
            "drop the adapter branch's input",
            documented=PLACES_IN_WORDS.get(place, ()),
            severity="major" if place in PLACES_IN_WORDS else None,
        )
        for name, place, summary, failure in (
            (
                "dropout_on_output",
                "output",
                "dropout is applied to the output of the whole layer, the base's part included",
                "the frozen base path is dropped too, so training sees a damaged base model",
            ),
            (
                "dropout_on_update",
                "update",
                "dropout is applied to the adapter's output instead of its input",
                "entries of the update are dropped instead of features: the factors are regularised otherwise",
            ),
            (
                "dropout_on_hidden",
                "hidden",
                "dropout is applied to the rank-r activation x Aᵀ instead of the adapter's input",
                "components of the update are dropped instead of features: at a small rank most of it, or none",
            ),
        )
    ]


def more_dropouts(variant: str) -> list[Mistake]:
    """Those that were seen later: they come last, where a diagnosis prefers the earlier of two that fit."""
    return [
        Mistake(
            f"{variant}.dropout_evaluation_scaled",
            "evaluation multiplies the adapter's contribution by 1 − p, which training has already made up for",
            "the evaluated adapter is weaker than the trained one by the dropout rate",
            {"mask": _scaled_in_evaluation},
            "leave the contribution alone in evaluation mode: training divides by 1 − p",
        ),
        Mistake(
            f"{variant}.dropout_on_everything",
            "dropout is applied to the input of the whole layer, the frozen base path included",
            "training sees a damaged base model",
            {"place": "everything"},
            "drop the adapter branch's input only, and give the base layer x itself",
            documented=PLACES_IN_WORDS["everything"],
            severity="major",
        ),
        Mistake(
            f"{variant}.dropout_on_delta_w",
            "dropout is applied to the entries of ΔW, one mask for the whole batch",
            "weights are dropped instead of features: all samples of a batch see the same holes",
            {"place": "delta_w"},
            "drop the adapter branch's input, not the update's weight",
        ),
    ]


# The start of A and B


def random_like(shape: Callable[[Tensor, AdapterSpec], tuple[int, ...]], std: float) -> Value:
    """A Gaussian start of that shape."""
    return lambda W, spec: torch.randn(shape(W, spec), dtype=torch.float64) * std


def shape_a(W: Tensor, spec: AdapterSpec) -> tuple[int, ...]:
    """(r, in)."""
    return spec.rank, W.shape[1]


def shape_b(W: Tensor, spec: AdapterSpec) -> tuple[int, ...]:
    """(out, r)."""
    return W.shape[0], spec.rank


def _uniform_a(factor: float) -> Value:
    def draw(W: Tensor, spec: AdapterSpec) -> Tensor:
        return (torch.rand(shape_a(W, spec), dtype=torch.float64) * 2 - 1) * factor / math.sqrt(W.shape[1])

    return draw


def _uniform_by_both(W: Tensor, spec: AdapterSpec) -> Tensor:
    bound = math.sqrt(6 / (W.shape[1] + spec.rank))
    return (torch.rand(shape_a(W, spec), dtype=torch.float64) * 2 - 1) * bound


def _uniform_by_rank(W: Tensor, spec: AdapterSpec) -> Tensor:
    return (torch.rand(shape_a(W, spec), dtype=torch.float64) * 2 - 1) / math.sqrt(spec.rank)


def _gaussian_a(W: Tensor, spec: AdapterSpec) -> Tensor:
    return torch.randn(shape_a(W, spec), dtype=torch.float64) / math.sqrt(W.shape[1])


def zeros(shape: Callable[[Tensor, AdapterSpec], tuple[int, ...]]) -> Value:
    """A start at zero."""
    return lambda W, spec: torch.zeros(shape(W, spec), dtype=torch.float64)


def starts_of_factors(
    variant: str, gaussian_agrees_with: str | None = None, gaussian: Severity | None = None
) -> list[Mistake]:
    """A and B that start elsewhere than A ~ U(±1/√in), B = 0."""
    from_zero = "start B at zero and A at random, U(−1/√in, 1/√in)"
    return [
        Mistake(
            f"{variant}.b_not_zero",
            "B starts at random values instead of zero",
            "the adapted model is not the base model before training",
            {"start.B": random_like(shape_b, 1e-6)},
            "start B at zero",
        ),
        Mistake(
            f"{variant}.factors_swapped",
            "A starts at zero and B at random",
            "the roles of the factors are exchanged: learning rates set per factor act on the wrong one",
            {"start.A": zeros(shape_a), "start.B": random_like(shape_b, 0.1)},
            from_zero,
        ),
        Mistake(
            f"{variant}.a_gain",
            "A is drawn with kaiming_uniform's default gain (a = 0): bound √(6/in) instead of √(1/in)",
            "A starts √6 too large: B's first steps are that much larger",
            {"start.A": _uniform_a(math.sqrt(6))},
            "draw A with kaiming_uniform_(a=√5), which is U(−1/√in, 1/√in)",
            documented=(r"\bhe.uniform\b",),
        ),
        Mistake(
            f"{variant}.a_gain_one",
            "A is drawn √3 too wide: bound √(3/in) (kaiming_uniform with a = 1) instead of √(1/in)",
            "A starts √3 too large: B's first steps are that much larger",
            {"start.A": _uniform_a(math.sqrt(3))},
            "draw A with kaiming_uniform_(a=√5), which is U(−1/√in, 1/√in)",
        ),
        Mistake(
            f"{variant}.a_xavier",
            "A is drawn by Xavier's rule: bound √(6/(in + r)) instead of √(1/in)",
            "A starts up to √6 too large: B's first steps are that much larger",
            {"start.A": _uniform_by_both},
            "draw A with kaiming_uniform_(a=√5), which is U(−1/√in, 1/√in)",
            documented=(r"\b(xavier|glorot)\b",),
        ),
        Mistake(
            f"{variant}.a_fan",
            "A is drawn by the size of its other side: bound 1/√r instead of 1/√in",
            "A starts √(in/r) too large, more so the wider the layer: B's first steps are that much larger",
            {"start.A": _uniform_by_rank},
            "draw A from U(−1/√in, 1/√in): the bound is that of A's inputs, not of its r outputs, also where A is kept "
            "as (in, r)",
        ),
        Mistake(
            f"{variant}.gaussian_a",
            "A is drawn from a Gaussian of standard deviation 1/√in"
            f"{', as the paper says' if gaussian_agrees_with else ''}; the codes draw uniformly",
            "A starts √3 larger than with either code; fine in itself, a different start from the references' "
            "code",
            {"start.A": _gaussian_a},
            "draw A from U(−1/√in, 1/√in), or say in the docstring that it is Gaussian",
            agrees_with=gaussian_agrees_with,
            documented=("gaussian", "normal (law|distribution|start|values?)", "normal_"),
            severity=gaussian,
        ),
    ]


def both_zero(variant: str) -> Mistake:
    """No factor ever moves."""
    return Mistake(
        f"{variant}.factors_zero",
        "both factors start at zero",
        "neither factor ever gets a gradient: nothing trains",
        {"start.A": zeros(shape_a), "start.B": zeros(shape_b)},
        "start A at random, U(−1/√in, 1/√in); only B starts at zero",
    )


# Training, dtypes


def _in_single(y: Tensor, x: Tensor, base: nn.Linear) -> Tensor:
    return y.float()


def common(variant: str) -> list[Mistake]:
    """What is independent of the method."""
    return [
        Mistake(
            f"{variant}.trainable_bias",
            "the base layer's bias stays trainable",
            "an optimiser over all trainable parameters would move it, and a file with the adapter alone leaves it out",
            {"trainable_base_bias": True},
            "freeze the base layer's bias with its weight",
            documented=(
                r"(kernel|weight)\W+(\w+\W+){0,4}(non.?trainable|frozen)",
                r"\bbias(es)?\W+(\w+\W+){0,4}(train\w*|tuned)",
            ),
        ),
        Mistake(
            f"{variant}.trainable_base",
            "the base layer's weight and bias stay trainable",
            "an optimiser over all trainable parameters would move the base model, which a file with the adapter alone "
            "leaves out",
            {"trainable_base": True},
            "freeze the base layer's parameters when the adapter is made",
        ),
        Mistake(
            f"{variant}.dead_first_step",
            "no gradient reaches the adapter on the first step",
            "the first optimiser step is lost, and warm-up schedules are off by one",
            {"dead_until_step": 1},
            "let the adapter's parameters take part in the graph from the first call on",
        ),
        Mistake(
            f"{variant}.output_in_fp32",
            "in half precision the output is fp32",
            "a half-precision model gets a layer that answers in another dtype: the next layer raises or promotes",
            {"finish": _in_single},
            "cast the output to the input's dtype",
        ),
    ]


def no_gradient(variant: str) -> Mistake:
    """The adapter's parameters are cut out of the graph."""
    return Mistake(
        f"{variant}.no_gradient",
        "no gradient ever reaches the adapter: its parameters are cut out of the graph",
        "nothing trains, on any step",
        {"dead_until_step": math.inf},
        "compute the adapter's branch with its parameters themselves, not with detached copies of them",
    )


def _base_alone(call: Call, do: Any) -> Tensor:
    return linear(call.x, call.W, call.b)


def no_effect(variant: str) -> Mistake:
    """The adapter takes no part in the output."""
    return Mistake(
        f"{variant}.no_effect",
        "the layer answers as its base does, whatever the adapter's tensors are",
        "what is trained or loaded changes nothing",
        {"equation": _base_alone},
        "compute the output from the very tensors that are trained, saved and loaded, and return it",
    )


def detached(t: Tensor) -> Tensor:
    """``t`` as a constant."""
    return t.detach()


def branches(variant: str) -> list[Mistake]:
    """Of methods that add a branch to the base path: either path cut out of the graph."""
    return [
        no_gradient(variant),
        Mistake(
            f"{variant}.branch_cut",
            "the adapter's branch is cut from the graph: no gradient reaches it, nor goes through it to the input",
            "nothing trains, on any step, and layers below miss the adapter's part of their gradient",
            {"branch": detached},
            "add the branch's output as it was computed: no detach, no new tensor, no no_grad around it",
        ),
        Mistake(
            f"{variant}.base_path_cut",
            "no gradient goes through the base path to the input",
            "layers below the adapted one get only the adapter's part of their gradient",
            {"base_input": detached},
            "call the base layer with x itself, outside torch.no_grad",
        ),
        Mistake(
            f"{variant}.adapter_input_cut",
            "no gradient goes through the adapter to the input",
            "layers below the adapted one get only the base weight's part of their gradient",
            {"adapter_input": detached},
            "keep x's graph on its way into the adapter's branch, and leave the weight that forward used as it is "
            "until the backward pass is over",
        ),
    ]


def _unscaled_behind(product: Tensor, s: float) -> Tensor:
    return product + ((s - 1) * product).detach()


def backward_unscaled(variant: str) -> Mistake:
    """The scale is in the output and not in what the backward pass makes of it."""
    return Mistake(
        f"{variant}.backward_unscaled",
        "the backward pass leaves α/r out, which the output has",
        "the gradients of A, B and, through the adapter, of the input are r/α times the right ones",
        {"scaled": _unscaled_behind},
        "multiply the gradients of A, of B and of the adapter's input by α/r",
    )


def lost_bias(variant: str, changes: dict[str, Any]) -> Mistake:
    """The base layer's bias is lost in forward."""
    return Mistake(
        f"{variant}.bias_dropped",
        "the base bias is lost",
        "every layer with a bias is shifted",
        changes,
        "add the base layer's bias to the output",
    )


def _negative(t: Tensor) -> Tensor:
    return -t


def _twice(b: Tensor | None, *_: Any) -> Tensor | None:
    return None if b is None else 2 * b


def more_branches(variant: str) -> list[Mistake]:
    """Of methods that add a branch to the base path, those that were seen later: they come last in a diagnosis."""
    return [
        Mistake(
            f"{variant}.branch_subtracted",
            "the adapter's update is subtracted instead of added",
            "the same parameters push the output the other way: a checkpoint from elsewhere acts with the wrong sign",
            {"branch": _negative},
            "add the branch's output to the base layer's",
        ),
        Mistake(
            f"{variant}.bias_doubled",
            "the base bias is added twice",
            "every layer with a bias is shifted by it, from the first step on",
            {"bias": _twice},
            "add the base layer's bias once: the base layer's own output has it",
        ),
    ]


def _drawn_bias(size: Callable[[Tensor, AdapterSpec], int]) -> Value:
    return lambda W, spec: torch.rand(size(W, spec), dtype=torch.float64) * 2 - 1


def own_biases(variant: str, of_b_from_zero: str | None = None) -> list[Mistake]:
    """Of methods with factors A and B: layers with a bias in their place. The vectors' names are the equation's own."""
    of_b = {f"start.{OWN_OUT}": _drawn_bias(lambda W, spec: W.shape[0])}
    of_a = {f"start.{OWN_RANK}": _drawn_bias(lambda W, spec: spec.rank)}
    return [
        Mistake(
            f"{variant}.{name}",
            summary,
            "what trains has more than the method: its files have no place for it, and with the method's tensors alone "
            "the output is another",
            changes,
            "leave the adapter's own bias out (bias=False, where its factors are nn.Linear)",
            documented=(r"\blora_bias\b", r"\bbias(es)? (in|of|on|to) (the )?(A|B|lora|adapter|factor)"),
            about=frozenset({"output"}),
            agrees_from_zero=of_b_from_zero if name == "own_bias" else None,
        )
        for name, summary, changes in (
            (
                "own_bias",
                "the adapter trains a bias of its own, which the method does not have, on B's product",
                {**of_b, "own": lambda p, s: p[OWN_OUT]},
            ),
            (
                "own_bias_unscaled",
                "the adapter trains a bias of its own, which the method does not have, beside its scaled product",
                {**of_b, "own": lambda p, s: p[OWN_OUT] / s},
            ),
            (
                "own_bias_of_a",
                "the adapter trains a bias of its own, which the method does not have, on A's product",
                {**of_a, "own": lambda p, s: p[OWN_RANK] @ p["B"].mT},
            ),
            (
                "own_biases",
                "the adapter trains biases of its own, which the method does not have, on A's and on B's product",
                {**of_a, **of_b, "own": lambda p, s: p[OWN_OUT] + p[OWN_RANK] @ p["B"].mT},
            ),
        )
    ]
