"""Mistakes are parts of an equation: two of different parts make a form that differs from either alone."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from fnmatch import fnmatchcase

import pytest
import torch
from torch import Tensor, nn

from oracles.equation import Equation
from oracles.implementation import AdapterSpec
from oracles.mistakes import compose, mistake, mistaken, mistakes_of
from oracles.seeding import seed_torch
from oracles.variants import VARIANTS, Form
from oracles.variants.record import Mistake

# α/r is no whole number and not one, dropout acts, there is a bias: nothing behind which a mistake could hide.
SPEC = AdapterSpec("lora", rank=4, alpha=10.0, dropout=0.4, lambda0=3.0)
IN, OUT = 7, 5
Behaviour = dict[str, object]


def specs(variant: str) -> list[AdapterSpec]:
    """The plain form, and each mode."""
    spec = dataclasses.replace(SPEC, variant=variant)
    options = [o for o in VARIANTS[variant].options if o.mode]
    return [spec, *(option.put(spec, True) for option in options)]


def behaviour(form: Form, variant: str) -> Behaviour:
    """Everything that a mistake can be about: start, roles, output, gradients, dropout, files, dtypes."""
    told: Behaviour = {}
    for number, spec in enumerate(specs(variant)):
        told |= {f"{number} {name}": value for name, value in _behaviour(form, spec).items()}
    return told


def _behaviour(form: Form, spec: AdapterSpec) -> Behaviour:
    seed_torch(3)
    base, half = nn.Linear(IN, OUT, dtype=torch.float64), nn.Linear(IN, OUT, dtype=torch.bfloat16)
    who = Equation({spec.variant: form}, "form")
    layer = who.adapt(base, spec)
    slots = {name: slot.tensor for name, slot in layer.slots.items()}
    told: Behaviour = {f"start of {name}": tensor.detach().clone() for name, tensor in slots.items()}
    told |= {f"{name} trains": tensor.requires_grad for name, tensor in slots.items()}
    told["base trains"] = (bool(base.weight.requires_grad), bool(base.bias.requires_grad))
    told["left out of files"] = sorted(form.parts["not_saved"])
    told["dtype"] = who.adapt(half, spec).module(torch.ones(1, IN, dtype=torch.bfloat16)).dtype
    for seed, training in ((11, True), (12, True), (14, False)):
        told |= _called(layer.module.train(training), slots, seed)
    return told


def _called(module: nn.Module, slots: dict[str, Tensor], seed: int) -> Behaviour:
    """Output and gradients at parameters far from the start, those that have one number of a sign by turns."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in slots.values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))
            if tensor.numel() == 1:
                tensor.copy_(tensor.abs() * (-1) ** seed)
    x = torch.randn(6, IN, generator=generator, dtype=torch.float64, requires_grad=True)
    seed_torch(seed)
    y = module(x)
    wanted = [t for t in (x, *slots.values()) if t.requires_grad]
    grads = (
        torch.autograd.grad(y, wanted, torch.cos(y.detach()), allow_unused=True) if y.requires_grad else ()
    )
    return {f"output {seed}": y.detach(), **{f"gradient {i} {seed}": g for i, g in enumerate(grads)}}


def same(one: Behaviour, other: Behaviour) -> bool:
    """Whether two forms cannot be told apart."""
    return one.keys() == other.keys() and all(_alike(one[k], other[k]) for k in one)


def _alike(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        comparable = a.shape == b.shape and a.dtype == b.dtype
        return comparable and torch.allclose(a, b, rtol=1e-9, atol=1e-12, equal_nan=True)
    return a == b


# Entry -> those of other parts that nobody can see beside it, for a reason of the method; * is any ending.
HIDES: dict[str, tuple[str, ...]] = {
    # no dropout acts anywhere
    "*.dropout_ignored": ("*.dropout_on_*",),
    # a mask of whole samples is the same before and after a linear map
    "*.dropout_rows": ("*.dropout_on_update", "lora.dropout_on_hidden", "pissa.dropout_on_hidden",
                       "vera.dropout_on_hidden",
                       "delora.dropout_on_hidden"),
    # without the branch in the graph it does not matter on which step its parameters would get a gradient
    "*.branch_cut": ("*.adapter_input_cut", "*.backward_unscaled",
                     "*.dead_first_step", "*.no_gradient", "*.norm_attached", "*.xi_detached",
                     "dora.magnitude_cut"),
    "*.no_gradient": ("*.norm_attached", "*.xi_detached", "*.constant_norm", "dora.magnitude_cut"),
    # what is no parameter has no gradient
    "dora.magnitude_frozen": ("dora.magnitude_cut",),
    # with s = 1 what is multiplied by s, or lacks it, is the same
    "*.no_scale": ("lora.bias_scaled", "*.backward_unscaled",
                   "dora.unscaled_norm", "pissa.no_scale_compensation", "pissa.scaled_residual",
                   "pissa.compensated_in_one_factor"),
    "dora.scale_outside": ("dora.unscaled_norm",),
    # the whole base trains, its bias too
    "*.trainable_base": ("*.trainable_bias",),
    # the norm of the frozen weight has no gradient
    "dora.norm_of_base": ("dora.norm_attached",),
    # sums have no order
    "hra.all_at_once": ("hra.reversed",),
    "hra.first_only": ("hra.all_at_once", "hra.gram_schmidt_always"),
    # orthonormal vectors have length one, and their reflections commute
    "hra.gram_schmidt_always": ("hra.reversed", "hra.not_normalised", "hra.constant_norm", "hra.norm_not_squared",
                                "hra.all_at_once"),
    # λ's own value does not come in
    "delora.lambda_ignored": ("delora.lambda_clamped", "delora.lambda_absolute"),
}  # fmt: skip


def hidden(entry: Mistake, beside: Mistake) -> bool:
    """Whether ``entry`` is catalogued not to show beside the other one."""
    return any(
        fnmatchcase(beside.id, hider) and any(fnmatchcase(entry.id, name) for name in names)
        for hider, names in HIDES.items()
    )


def pairs(variant: str) -> Iterator[tuple[Mistake, Mistake]]:
    """Entries of different parts. One that has another equation altogether has none of the right one's parts."""
    entries = [m for m in mistakes_of(variant) if "equation" not in m.parts]
    return ((a, b) for a, b in itertools.combinations(entries, 2) if not a.parts & b.parts)


@pytest.mark.parametrize("variant", VARIANTS)
def test_mistakes_of_different_parts_compose(variant: str) -> None:
    """To a form in which neither is made alone, but where the method itself lets one hide the other."""
    right = behaviour(VARIANTS[variant].form, variant)
    alone = {m.id: behaviour(compose([m]), variant) for m in mistakes_of(variant)}
    assert not [id_ for id_, found in alone.items() if same(found, right)]
    for one, other in pairs(variant):
        both = behaviour(compose([one, other]), variant)
        assert same(both, alone[one.id]) == hidden(other, one), f"{other.id} beside {one.id}"
        assert same(both, alone[other.id]) == hidden(one, other), f"{one.id} beside {other.id}"


def test_the_order_of_different_parts_does_not_matter() -> None:
    three = [mistake(f"dora.{name}") for name in ("norm_attached", "bias_scaled", "unscaled_norm")]
    found = [behaviour(compose(order), "dora") for order in itertools.permutations(three)]
    assert all(same(found[0], other) for other in found)


def test_mistakes_of_several_methods_are_not_composed() -> None:
    with pytest.raises(ValueError, match=r"of one variant, got those of \['dora', 'lora'\]"):
        compose([mistake("lora.sqrt_rank"), mistake("dora.sqrt_rank")])
    with pytest.raises(KeyError, match=r"lora\.sqrt_rank"):
        mistaken("lora.sqrt_rnak")


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_entry_says_what_to_do(variant: str) -> None:
    """A summary, a failure mode, and a remedy that is one imperative sentence; the ids are unique."""
    entries = mistakes_of(variant)
    assert len({m.id for m in entries}) == len(entries)
    for entry in entries:
        assert entry.variant == variant
        assert entry.summary
        assert entry.failure_mode
        assert entry.speaks_of
        assert entry.remedy[0].islower(), entry.remedy
        assert not entry.remedy.endswith("."), entry.remedy
