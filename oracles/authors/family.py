"""The fixed family of cases on which an author's code is recorded, and what is computed in each.

A case is the same live or recorded: the inputs come from its own seed, the expectations from the author.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from oracles.authors.base import AuthorImplementation, plain
from oracles.authors.recorded_case import RecordedCase
from oracles.implementation import Adapted, AdapterSpec, Unsupported
from oracles.seeding import restored_rng

__all__ = ["CaseSpec", "RecordedCase", "compute", "effective_weight", "family"]

STEPS, RATE = 5, 0.01
SHAPES = ((6, 4), (4, 6), (5, 1), (1, 5), (8, 8), (16, 12))  # (out, in)
BATCHES = ((), (3,), (2, 3), (1, 2, 3))


@dataclass(frozen=True)
class CaseSpec:
    """One case of the family: what is adapted, how, and from which seed."""

    id: str
    spec: AdapterSpec
    out_features: int
    in_features: int
    bias: bool
    dtype: torch.dtype
    initial: bool
    batch: tuple[int, ...]
    seed: int


def family(variant: str, oracle: str) -> list[CaseSpec]:
    """The cases of an oracle: every shape at its start and far from it, ranks odd, even, above both sides."""
    made: list[CaseSpec] = []
    for number, (out, in_features) in enumerate(SHAPES):
        for initial in (True, False):
            for dtype in _dtypes(number):
                spec = _spec(variant, oracle, number, initial, min(out, in_features))
                name = f"{out}x{in_features}-r{spec.rank}-{'init' if initial else 'far'}-{str(dtype)[6:]}"
                batch = _batch(variant, oracle, BATCHES[(number + initial) % len(BATCHES)])
                bias = (number // 2 + initial) % 2 == 0
                made.append(
                    CaseSpec(name, spec, out, in_features, bias, dtype, initial, batch, 1000 + len(made))
                )
    return made


def _batch(variant: str, oracle: str, batch: tuple[int, ...]) -> tuple[int, ...]:
    """A batch the author's layer takes: DoRA's bias refuses x of one dimension, llama's HRA permutes four."""
    if variant == "dora" and not batch:
        return (1,)
    return batch[1:] if "llama" in oracle and len(batch) == 3 else batch


def _dtypes(number: int) -> tuple[torch.dtype, ...]:
    wide = (torch.float64, torch.float32)
    return (*wide, torch.bfloat16) if number >= 4 else wide


def _spec(variant: str, oracle: str, number: int, initial: bool, smaller: int) -> AdapterSpec:
    """Ranks 2, 3, 1, 2, 4, 6 (pissa at most the smaller side, hra even), alpha unlike it where it counts."""
    rank = (2, 3, 1, 2, 4, 6)[number]
    if variant == "pissa":
        rank = min(rank, smaller)
        return AdapterSpec(variant, rank, rank)
    if variant == "hra":
        if oracle.startswith("author_llama"):
            return AdapterSpec(variant, rank, gram_schmidt=oracle.endswith("_gs"))
        return AdapterSpec(variant, rank + rank % 2, gram_schmidt=not initial and number >= 3)
    if variant == "ia3":
        return AdapterSpec(variant, feedforward=number % 2 == 1)
    return AdapterSpec(variant, rank, alpha=1.5 * rank + 1, lambda0=15.0 if initial else 3.0)


def compute(author: AuthorImplementation, case: CaseSpec) -> RecordedCase:
    """Run the author's code on one case. Raises Unsupported, NotAvailableError."""
    weight, bias, x, cotangent = _inputs(case)
    adapted = _adapted(author, case, weight, bias)
    parameters = {name: slot.view(slot.tensor).detach().clone() for name, slot in adapted.slots.items()}
    expected = _forward_and_gradients(adapted, x, cotangent)
    expected["effective_weight"] = effective_weight(adapted.module, case.in_features, case.dtype)
    expected |= _merged(author, _adapted(author, case, weight, bias))
    state = _state(author, adapted)
    if case.dtype.itemsize >= 4:
        expected |= _trajectory(adapted, x, cotangent)
    head = (case.id, author.oracle, case.spec, case.initial)
    return RecordedCase(*head, weight, bias, x, cotangent, parameters, expected, state)


def effective_weight(module: nn.Module, in_features: int, dtype: torch.dtype) -> Tensor:
    """W' (out, in) of y = x W'^T + c, read off the module's answers: W' = (y(I) - y(0))^T."""
    with torch.no_grad():
        constant = module(torch.zeros(1, in_features, dtype=dtype))
        return (module(torch.eye(in_features, dtype=dtype)) - constant).mT.contiguous()


def _inputs(case: CaseSpec) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    draw = _drawer(case.seed, case.dtype)
    weight = draw(case.out_features, case.in_features) / case.in_features**0.5
    bias = draw(case.out_features)
    return (
        weight,
        bias if case.bias else None,
        draw(*case.batch, case.in_features),
        draw(*case.batch, case.out_features),
    )


def _drawer(seed: int, dtype: torch.dtype) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def _adapted(author: AuthorImplementation, case: CaseSpec, weight: Tensor, bias: Tensor | None) -> Adapted:
    """The author's layer at its own start, or every tensor but the residual weight moved far from it."""
    with restored_rng(case.seed):
        adapted = author.adapt(plain(weight, bias), case.spec)
    if not case.initial:
        with torch.no_grad():
            for number, (name, slot) in enumerate(adapted.slots.items()):
                draw = _drawer(case.seed * 100 + number, slot.tensor.dtype)
                if name != "W":
                    slot.tensor.copy_(_far(name, draw(*slot.tensor.shape)))
    return adapted


def _far(name: str, noise: Tensor) -> Tensor:
    """Magnitudes and lambda stay positive, as training leaves them; everything else is free."""
    return noise.abs() + 0.5 if name in ("m", "lambda") else noise


def _forward_and_gradients(adapted: Adapted, x: Tensor, cotangent: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_(True)
    out = adapted.module(x)
    trained = {n: s for n, s in adapted.slots.items() if s.tensor.requires_grad}
    wanted = [x, *(slot.tensor for slot in trained.values())]
    grads = torch.autograd.grad(out, wanted, cotangent.to(out.dtype))
    named = {
        f"grad.{name}": slot.view(grad) for (name, slot), grad in zip(trained.items(), grads[1:], strict=True)
    }
    found = {"forward": out.detach(), "grad.x": grads[0], **named}
    return {name: tensor.detach().clone().contiguous() for name, tensor in found.items()}


def _merged(author: AuthorImplementation, adapted: Adapted) -> dict[str, Tensor]:
    """The weight of the author's own merge, where there is one; ``adapted`` may be used up by it."""
    try:
        return {"merged": author.merge(adapted).weight.detach().clone()}
    except Unsupported:
        return {}


def _state(author: AuthorImplementation, adapted: Adapted) -> dict[str, tuple[int, ...]]:
    try:
        return {key: tuple(value.shape) for key, value in sorted(author.state(adapted).items())}
    except Unsupported:
        return {}


def _trajectory(adapted: Adapted, x: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Losses and parameters of a few steps of plain SGD; the module is not what it was afterwards."""
    trained = {n: s.tensor for n, s in adapted.slots.items() if s.tensor.requires_grad}
    optimizer = torch.optim.SGD(list(trained.values()), lr=RATE)
    losses = []
    for step in range(STEPS + 1):
        loss = 0.5 * (adapted.module(x) - target).square().mean()
        losses.append(loss.detach())
        if step < STEPS:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    views = {n: s.view(s.tensor) for n, s in adapted.slots.items() if n in trained}
    return {
        "losses": torch.stack(losses),
        **{f"trained.{n}": v.detach().clone().contiguous() for n, v in views.items()},
    }
