"""DoRA (Liu et al., arXiv 2402.09353): a magnitude for each output, and a direction that LoRA moves."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from oracles.implementation import AdapterSpec
from oracles.variants import lora
from oracles.variants.paper import linear, scale
from oracles.variants.record import Active, Binding, Call, Canonical, Mistake, Parameters, Variant, form_of
from oracles.variants.shared_mistakes import (
    both_zero,
    branches,
    common,
    detached,
    dropouts,
    lost_bias,
    more_branches,
    more_dropouts,
    no_effect,
    scales,
    starts_of_factors,
)
from oracles.variants.shared_parts import (
    GAUSSIAN_A,
    RSLORA,
    B,
    adding,
    base_bias,
    no_bias,
    nothing_of_its_own,
    same,
    signed,
)


def dora(call: Call, do: Any) -> Tensor:
    """DoRA Eq. (5), ``W' = m (W₀ + BA) / ‖W₀ + BA‖_c``, the norm a constant under differentiation (§4.3, Eq. (11)).

    One norm per output feature (a row of W): what both codes compute; the paper's ‖·‖_c over columns of
    W ∈ R^{d×k} read literally would be one per input. Dropout: the base path keeps x.
    """
    A, B, W, s = call.p["A"], call.p["B"], call.W, do.scale(call.spec)
    V = W + s * (B @ A)
    length = do.constant(do.norm(do.normed(W, V, call.p, s)))
    m = do.magnitude(call.p["m"])
    base = do.base_input(call.x) @ W.mT
    if length.dim() == 1 and call.place != "delta_w":
        g = m / length
        x = call.drop("input", do.adapter_input(call.x))
        h = call.drop("hidden", call.drop("low_rank", x) @ A.mT)
        product = call.drop("product", h @ B.mT)
        adapted = (g - 1) * (x @ W.mT) + g * s * product
    else:
        spread, norms = do.spread(m), length if length.dim() == 2 else length[:, None]
        g = spread / norms
        x = call.drop("input", do.adapter_input(call.x))
        inner = _product(call, A, B, (spread, 1 / norms), x)
        if inner is None:
            adapted = x @ (g * (W + s * call.drop("delta_w", B @ A)) - W).mT
        else:
            adapted = x @ (g * W - W).mT + s * inner
    adapted = call.drop("update", do.branch(adapted))
    if do.outer is not None:
        adapted = do.outer(call.spec) * adapted
    b = do.bias(call.b, g)
    return base + adapted if b is None else base + b + adapted


def _product(call: Call, A: Tensor, B: Tensor, factors: tuple[Tensor, Tensor], x: Tensor) -> Tensor | None:
    """x (g ⊙ B A)ᵀ where dropout acts in the low-rank product itself; None where it does not.

    ``factors``: of g, each (out, 1), (1, in) or (1, 1).
    """
    if call.place not in ("low_rank", "hidden", "product"):
        return None
    of_rows = [f for f in factors if f.shape[1] == 1]
    of_columns = [f for f in factors if f.shape[1] != 1]
    h = call.drop("hidden", call.drop("low_rank", x) @ math.prod(of_columns, start=A).mT)
    return call.drop("product", h @ B.mT) * math.prod(of_rows, start=torch.ones_like(B[:1, :1])).mT


def rows(V: Tensor) -> Tensor:
    """‖V‖ over the inputs, one number per output (out,)."""
    return torch.linalg.vector_norm(V, dim=1)


def _columns(V: Tensor) -> Tensor:
    return torch.linalg.vector_norm(V, dim=0, keepdim=True)


def _frobenius(V: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(V).reshape(1, 1)


def _frobenius_start(W: Tensor, spec: AdapterSpec) -> Tensor:
    return torch.full((W.shape[0],), float(torch.linalg.matrix_norm(W)), dtype=W.dtype)


def _scaled_bias(b: Tensor | None, g: Tensor) -> Tensor | None:
    return None if b is None else b * (g if g.dim() == 1 else g[:, 0])


def _to_the_direction(call: Call, do: Any) -> Tensor:
    """The update on W/‖W‖, by whatever norm the form has."""
    length = do.norm(call.W)
    unit = call.W / (length[:, None] if length.dim() == 1 else length)
    return dora(dataclasses.replace(call, W=unit), do)


def _beside_the_direction(call: Call, do: Any) -> Tensor:
    """m (W/‖W‖ + s B A): the update joins the unit rows, and the sum is not brought to length one."""
    g = do.magnitude(call.p["m"]) / rows(call.W)
    h = call.drop("hidden", call.drop("input", do.adapter_input(call.x)) @ call.p["A"].mT)
    update = do.scale(call.spec) * call.drop("product", h @ call.p["B"].mT)
    update = call.drop("update", do.branch(do.magnitude(call.p["m"]) * update))
    return linear(do.base_input(call.x), g[:, None] * call.W, do.bias(call.b, g)) + update


def _on_the_update(call: Call, do: Any) -> Tensor:
    """x Wᵀ + m ⊙ (s x Aᵀ Bᵀ): a LoRA whose outputs have a factor each, with W as it is."""
    m = do.magnitude(call.p["m"])
    x = call.drop("low_rank", call.drop("input", do.adapter_input(call.x)))
    product = call.drop("hidden", x @ call.p["A"].mT) @ call.p["B"].mT
    update = call.drop("update", do.branch(m * do.scale(call.spec) * call.drop("product", product)))
    return linear(do.base_input(call.x), call.W, do.bias(call.b, m)) + update


def _base_added(call: Call, do: Any) -> Tensor:
    return dora(call, do) + linear(call.x, call.W, call.b)


def _of_activations(call: Call, do: Any) -> Tensor:
    """m y / ‖y‖ for every row y of x (W + s B A)ᵀ + b."""
    h = call.drop("hidden", call.drop("input", call.x) @ call.p["A"].mT)
    update = call.drop("update", do.scale(call.spec) * (h @ call.p["B"].mT))
    y = linear(do.base_input(call.x), call.W, call.b) + update
    return do.magnitude(call.p["m"]) * y / torch.linalg.vector_norm(y, dim=-1, keepdim=True).clamp(min=1e-8)


TENSORS = (
    GAUSSIAN_A,
    B,
    Canonical("m", lambda out, in_, spec: (out,), exact=lambda W, spec: rows(W), far=signed(0.5, 3)),
)
FORM = form_of(
    dora,
    TENSORS,
    scale=scale,
    norm=rows,
    normed=lambda W, V, p, s: V,
    constant=detached,
    magnitude=same,
    spread=lambda m: m[:, None],
    outer=None,
    bias=base_bias,
    base_input=same,
    adapter_input=same,
    branch=same,
)


def _of_unscaled(W: Tensor, V: Tensor, p: Parameters, s: float) -> Tensor:
    return W + p["B"] @ p["A"]


def _update(p: Parameters, spec: AdapterSpec) -> Tensor:
    return scale(spec) * (p["B"] @ p["A"])


def _with_norms_of(own: Active, other: Active, W: Tensor) -> Parameters:
    p, spec = own
    return {**p, "m": p["m"] * rows(W + _update(p, spec)) / rows(W + _update(*other))}


MISTAKES = (
    no_effect("dora"),
    Mistake(
        "dora.norm_attached",
        "the gradient flows through ‖V‖ (Eq. (6)) instead of treating it as a constant (§4.3, Eq. (11))",
        "gradients of A and B lose their component along V: training follows another trajectory",
        {"constant": same},
        "detach ‖W + (α/r) B A‖ before dividing by it",
        documented=(
            "dora_simple\\s*=\\s*False",
            "(through|differentiat\\w*|backprop\\w*|gradients?\\b.{0,40})\\W+(through )?the (weight )?norm",
            "norm.{0,40}(not|n't|never).{0,12}detach",
            "(not|n't|without).{0,12}detach\\w*.{0,40}norm",
            "attached norm",
            "norm.{0,30}(takes part|participates|(is )?included|is kept|stays|remains) in the "
            "(gradient|graph|backward)",
            "gradients?.{0,12}(flows?|propagates?|pass(es)?) (also )?through.{0,20}norm",
            "(?<!not the )(?<!instead of the )(?<!without the )full gradient",
            "norm.{0,20}attached",
        ),
        severity="major",
    ),
    Mistake(
        "dora.norm_over_inputs",
        "one norm per input feature (a column of W) divides, instead of one per output feature",
        "the direction is not the reference's; the paper's ‖·‖_c can be read so, and both PEFT's code and the author's "
        "norm the rows",
        {"norm": _columns},
        "take the norm of each row of W + (α/r) B A (dim=1 of the torch weight): one per output",
    ),
    Mistake(
        "dora.frobenius_norm",
        "one Frobenius norm of V divides every row",
        "rows are no longer normalised: magnitude and direction are not decoupled",
        {"norm": _frobenius, "start.m": _frobenius_start},
        "divide each row of W + (α/r) B A by its own norm",
    ),
    Mistake(
        "dora.bias_scaled",
        "the bias is multiplied by m/‖V‖ with the rest of the output",
        "as soon as m or V moves, every bias moves with it",
        {"bias": _scaled_bias},
        "multiply x (W + (α/r) B A)ᵀ by m/‖V‖ first, and add the bias afterwards",
    ),
    Mistake(
        "dora.unscaled_norm",
        "the norm is that of W + B A, without α/r",
        "with α ≠ r rows are not normalised: the output's magnitude is not m",
        {"normed": _of_unscaled},
        "divide by ‖W + (α/r) B A‖, with the scale, instead of ‖W + B A‖",
    ),
    Mistake(
        "dora.norm_of_base",
        "the norm is that of the frozen W, not of W + (α/r) B A",
        "the direction is not normalised: B A changes the magnitude as well",
        {"normed": lambda W, V, p, s: W},
        "divide by ‖W + (α/r) B A‖, taken anew at every call, instead of ‖W‖",
    ),
    Mistake(
        "dora.magnitude_ones",
        "m starts at one instead of ‖W‖",
        "every row is normalised to length one at the start: the adapted model is not the base model",
        {"start.m": lambda W, spec: torch.ones(W.shape[0], dtype=W.dtype)},
        "start m at the norms of the rows of W",
    ),
    Mistake(
        "dora.dropout_on_low_rank",
        "dropout reaches the low-rank product alone: the correction (g − 1) x Wᵀ sees the whole x",
        "the two halves of the update see different inputs: with the mask of PEFT and the authors both are dropped",
        {"place": "low_rank"},
        "use one dropped x for both (g − 1) x Wᵀ and g (α/r) x Aᵀ Bᵀ",
    ),
    *scales("dora"),
    *starts_of_factors("dora"),
    *dropouts("dora"),
    *common("dora"),
    lost_bias("dora", {"bias": no_bias}),
    Mistake(
        "dora.plain_lora",
        "asked for DoRA, a plain LoRA layer is built: there is no magnitude, and nothing is normalised",
        "another method would be trained than the one that was asked for",
        {
            "equation": lora.lora,
            "scaled": lora.times,
            "own": nothing_of_its_own,
            "hidden": frozenset({"m"}),
            "role.m": "buffer",
        },
        "build the layer with a magnitude m of one entry per output, started at the norms of W's rows",
        about=frozenset({"output", "roles"}),
    ),
    Mistake(
        "dora.magnitude_unused",
        "the magnitude m is held and not used: what is computed is a plain LoRA, and nothing is normalised",
        "m never learns, and a DoRA checkpoint answers as another model",
        {"equation": lora.lora, "scaled": lora.times, "own": nothing_of_its_own},
        "compute m (W + (α/r) B A)/‖W + (α/r) B A‖ from the m that is trained, saved and loaded",
        about=frozenset({"output", "gradient"}),
    ),
    Mistake(
        "dora.beside_direction",
        "the update is added to the unit rows W/‖W‖, and the sum is not brought to length one: m (W/‖W‖ + (α/r) B A)",
        "the magnitudes of the adapted weight are not m, and a checkpoint answers as another model elsewhere",
        {"equation": _beside_the_direction},
        "divide V = W + (α/r) B A, and not W alone, by its own norm: m V/‖V‖",
    ),
    Mistake(
        "dora.magnitude_on_update",
        "the magnitude m multiplies the update alone, and nothing is normalised: W + m (α/r) B A",
        "the magnitudes of the adapted weight are not m, and a checkpoint answers as another model elsewhere",
        {"equation": _on_the_update},
        "multiply W and the update by m together, over the norm of their sum: m (W + (α/r) B A)/‖W + (α/r) B A‖",
    ),
    Mistake(
        "dora.scale_outside",
        "α/r multiplies the change after the decomposition, W + (α/r) (m (W + B A)/‖W + B A‖ − W)",
        "what is normalised is another direction, and the layer's magnitude is not m",
        {"scale": lambda spec: 1.0, "outer": scale},
        "scale B A inside the decomposition, V = W + (α/r) B A, and nothing outside it",
    ),
    Mistake(
        "dora.magnitude_per_input",
        "there is one magnitude for each input (a column of W) instead of one for each output",
        "m has another length: checkpoints do not fit, and other directions are rescaled; Eq. (5)'s ‖·‖_c can be read "
        "so, and both PEFT's code and the author's norm the rows",
        {
            "norm": _columns,
            "spread": lambda m: m[None, :],
            "start.m": lambda W, spec: torch.linalg.vector_norm(W, dim=0),
        },
        "keep one magnitude per output: the norm of each row of the torch weight (dim=1)",
    ),
    Mistake(
        "dora.added_to_direction",
        "the update is added to the unit rows W/‖W‖ instead of to W: (W/‖W‖ + (α/r) B A) is brought to length m",
        "the update weighs more the longer the rows of W are; a checkpoint from elsewhere is another model here",
        {"equation": _to_the_direction},
        "add (α/r) B A to W itself, and divide the sum by the norms of its rows",
    ),
    Mistake(
        "dora.base_added",
        "the base layer's output is added to the adapted one, which holds it already",
        "a fresh adapter answers twice what the base does",
        {"equation": _base_added},
        "return m (W + (α/r) B A) x / ‖W + (α/r) B A‖ + b alone, or add to the base's output the difference",
    ),
    Mistake(
        "dora.norm_of_activations",
        "the output is divided by its own norm, instead of the weight by the norm of its rows",
        "the layer is not affine in its input: it cannot be merged, and large inputs are answered like small ones",
        {"equation": _of_activations, "bias": same},
        "divide the rows of W + (α/r) B A by their norms, not the output by its own",
    ),
    Mistake(
        "dora.magnitude_clamped",
        "negative magnitudes are taken to be zero",
        "an output whose magnitude has crossed zero is switched off and gets no gradient any more",
        {"magnitude": lambda m: m.clamp(min=0)},
        "use m as it is, of either sign",
    ),
    Mistake(
        "dora.magnitude_absolute",
        "the magnitude is taken without its sign",
        "a checkpoint with a negative magnitude gives the output of the opposite sign",
        {"magnitude": torch.abs},
        "use m as it is, of either sign",
    ),
    Mistake(
        "dora.magnitude_frozen",
        "m is not trained: it is no parameter, or one that wants no gradient",
        "the magnitudes stay those of the base: half of the method is missing",
        {"role.m": "buffer"},
        "let m be a parameter that wants a gradient",
    ),
    Mistake(
        "dora.dropout_on_product",
        "dropout is applied to the low-rank product x Aᵀ Bᵀ instead of the adapter's input",
        "entries of the update are dropped instead of features, and the correction sees the whole x",
        {"place": "product"},
        "use one dropped x for both (g − 1) x Wᵀ and g (α/r) x Aᵀ Bᵀ",
    ),
    Mistake(
        "dora.magnitude_cut",
        "no gradient reaches the magnitude m: it takes part in the output as a constant",
        "the magnitudes stay those of the base: half of the method is missing",
        {"magnitude": detached},
        "multiply by the parameter m itself, not by a detached copy of it",
        about=frozenset({"gradient"}),
    ),
    both_zero("dora"),
    *branches("dora"),
    *more_dropouts("dora"),
    *more_branches("dora"),
)


def _in_order(active: Sequence[Active], W: Tensor, b: Tensor | None, x: Tensor) -> Tensor:
    y = x @ W.mT
    for p, spec in active:
        update = scale(spec) * (p["B"] @ p["A"])
        y = p["m"] / rows(W + update).detach() * (y + x @ update.mT)  # ‖V‖ is a constant here, too
    return y if b is None else y + b


DORA_LAYER = "lora/dora.py"
VARIANT = Variant(
    id="dora",
    order=3,
    title="DoRA",
    paper="arXiv 2402.09353",
    equation="y = x (diag(m / ‖V‖_row) V)ᵀ + b, V = W + (α/r) B A, ‖V‖ constant under differentiation",
    tensors=TENSORS,
    form=FORM,
    mistakes=MISTAKES,
    composition="in order, on what the ones before have made of the output: y ← g_i (y − b + s_i x A_iᵀ B_iᵀ) + b from "
    "y = x Wᵀ + b, g_i = m_i / ‖W + s_i B_i A_i‖; in training with dropout each adds what it changes of the base alone",
    compose_adapters=_in_order,
    also_composes=(adding(FORM),),
    with_norms_of=_with_norms_of,
    peft=Binding(
        lambda spec, targets: lora.config(spec, targets, use_dora=True),
        {**lora.FACTORS, "m": "lora_magnitude_vector.default.weight"},
        {
            "shapes": (DORA_LAYER, "DoraLinearLayer.update_layer"),
            "init": (DORA_LAYER, "DoraLinearLayer.update_layer"),
            "forward": (DORA_LAYER, "DoraLinearLayer.forward"),
        },
        reads=lora.reads("dora"),
    ),
    options=(RSLORA,),
    has_dropout=True,
    file_without_alpha=lora.VARIANT.file_without_alpha,
)
