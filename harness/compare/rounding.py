"""What is measured on a layer, the float64 value it should have, and how far rounding alone may take it.

The ratio of DESIGN §9 is ``‖q − q64‖ / noise``. The noise of a quantity is measured, not bounded: q64 is computed
again with every input (x, W, b, parameters, cotangent) perturbed by relative Gaussian steps of one unit roundoff,
and once more in float32, and the root mean square of the changes is what a stable computation in that dtype would
be off by. A floor from the operands' norms covers quantities in which perturbations cancel but roundings do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from harness import clock
from harness.cases.layer_cases import Case
from harness.compare.layer import BadAnswer, Layer, answering
from oracles.implementation import AdapterSpec
from oracles.variants import paper

Quantities = dict[str, Tensor]
PERTURBATIONS = 4


def roundoff(dtype: torch.dtype) -> float:
    """The unit roundoff u = eps / 2 of ``dtype``."""
    return torch.finfo(dtype).eps / 2


def coarser(dtype: torch.dtype) -> torch.dtype:
    """``dtype``, or float32 where that is finer: formula claims are measured in float32's units."""
    return torch.float32 if dtype == torch.float64 else dtype


def observe(layer: Layer, case: Case, *, gradients: bool = False, x: Tensor | None = None) -> Quantities:
    """The output of a layer at its present parameters and, on request, ∂⟨G, y⟩ of every slot and of x; float64."""
    x = (case.x if x is None else x).clone().requires_grad_(gradients)
    layer.clear_gradients()
    y = of_the_layers_shape(layer, case, layer(x), x)
    found = {"output": y.detach().double()}
    if gradients:
        if y.requires_grad:
            with answering(layer.who, "the backward pass"):
                y.backward(case.cotangent.to(y.dtype))
        for name in layer.names:
            if layer.raw(name).requires_grad:
                found[f"gradient of {name}"] = layer.gradient(name)
        found["gradient of x"] = torch.zeros_like(x).double() if x.grad is None else x.grad.double()
        layer.clear_gradients()
    return found


def of_the_layers_shape(layer: Layer, case: Case, y: Tensor, x: Tensor) -> Tensor:
    """``y``, an output for ``x``. Raises BadAnswer where it has another shape than (*batch, out)."""
    expected = (*x.shape[:-1], case.out_features)
    if tuple(y.shape) != expected:
        told = f"{layer.who}: module(x) has shape {tuple(y.shape)}, expected {expected}"
        raise BadAnswer(told).of(layer.who)
    return y


@dataclass(frozen=True)
class Point:
    """Everything an equation needs, in float64: the inputs whose rounding is unavoidable."""

    x: Tensor
    W: Tensor
    b: Tensor | None
    parameters: Mapping[str, Tensor]
    cotangent: Tensor
    spec: AdapterSpec

    def perturbed(self, unit: float, generator: torch.Generator) -> Point:
        """Every entry times (1 + unit·N(0, 1))."""
        return self._with(lambda t: shaken(t, unit, generator))

    def to(self, dtype: torch.dtype) -> Point:
        """Every tensor in ``dtype``."""
        return self._with(lambda t: t.to(dtype))

    def _with(self, change: Callable[[Tensor], Tensor]) -> Point:
        return Point(
            change(self.x),
            change(self.W),
            None if self.b is None else change(self.b),
            {name: change(value) for name, value in self.parameters.items()},
            change(self.cotangent),
            self.spec,
        )


def point(case: Case, parameters: Mapping[str, Tensor]) -> Point:
    """The float64 point of a case at canonical ``parameters``."""
    b = None if case.bias_vector is None else case.bias_vector.double()
    p = {name: value.double() for name, value in parameters.items()}
    return Point(case.x.double(), case.weight.double(), b, p, case.cotangent.double(), case.spec)


def evaluate(forward: paper.Forward, at: Point, trainable: list[str], gradients: bool) -> Quantities:
    """The equation's quantities at a point, named as :func:`observe` names them."""
    with clock.charge("oracle"):
        return _evaluate(forward, at, trainable, gradients)


def _evaluate(forward: paper.Forward, at: Point, trainable: list[str], gradients: bool) -> Quantities:
    if not gradients:
        with torch.no_grad():
            return {"output": forward(at.x, at.W, at.b, at.parameters, at.spec, at.x)}
    x = at.x.clone().requires_grad_(True)
    p = {n: v.clone().requires_grad_(n in trainable) for n, v in at.parameters.items()}
    y = forward(x, at.W, at.b, p, at.spec, x)
    leaves = {f"gradient of {n}": p[n] for n in trainable if n in p} | {"gradient of x": x}
    found = torch.autograd.grad(y, list(leaves.values()), at.cotangent, allow_unused=True)
    zeros = (
        torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves.values(), strict=True)
    )
    return {"output": y.detach(), **dict(zip(leaves, zeros, strict=True))}


Evaluate = Callable[[Point], Quantities]


def noise(
    evaluate_at: Evaluate, at: Point, dtype: torch.dtype, generator: torch.Generator
) -> dict[str, float]:
    """Per quantity, the Frobenius norm that rounding in ``dtype`` alone accounts for (see the module's text)."""
    unit = roundoff(dtype)
    # Steps below sqrt(eps64) of float64 would drown in its own rounding: measure wide, scale back.
    step = max(unit, 1e-9)
    exact = evaluate_at(at)
    total = dict.fromkeys(exact, 0.0)
    for _ in range(PERTURBATIONS):
        near = at.perturbed(step, generator)
        moved, single = evaluate_at(near), evaluate_at(near.to(torch.float32))
        for name in exact:
            spread = norm(moved[name] - exact[name]) * unit / step
            rounding = norm(single[name].double() - moved[name]) * min(unit / roundoff(torch.float32), 1.0)
            total[name] += spread**2 + rounding**2
    return {name: (total[name] / PERTURBATIONS) ** 0.5 + unit * floor(name, exact, at) for name in exact}


def shaken(t: Tensor, unit: float, generator: torch.Generator) -> Tensor:
    """Every entry of ``t`` times (1 + unit·N(0, 1))."""
    return t * (1 + unit * torch.randn(t.shape, generator=generator, dtype=t.dtype))


def norm(t: Tensor) -> float:
    """The Euclidean norm of all entries."""
    return float(torch.linalg.vector_norm(t))


def floor(name: str, exact: Quantities, at: Point) -> float:
    """The size of the operands whose cancellation the quantity is the result of."""
    own = norm(exact[name])
    if not name.startswith("gradient of "):
        return own
    leaf = name.removeprefix("gradient of ")
    size = norm(at.x if leaf == "x" else at.parameters[leaf])
    if size == 0:
        return own
    return own + norm(at.cotangent) * (norm(exact["output"]) + norm(at.x) * norm(at.W)) / size


def same_values(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same values: NaN, which nothing equals, where the other has NaN."""
    if torch.equal(a, b):
        return True
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def ratio(actual: Tensor, exact: Tensor, scale: float) -> float:
    """``‖actual − exact‖_F / scale``; infinite for NaN, for shapes that differ, or where any error is too much."""
    if actual.shape != exact.shape or not bool(torch.isfinite(actual).all()):
        return float("inf")
    error = float(torch.linalg.vector_norm(actual - exact))
    if error == 0:
        return 0.0
    return error / scale if scale > 0 else float("inf")


def identity_noise(case: Case, base: Tensor) -> float:
    """What rounding may do to ``x Wᵀ + b`` when an adapter's contribution cancels exactly: ‖|x| |W|ᵀ‖ + ‖y‖."""
    unit = roundoff(coarser(case.torch_dtype))
    terms = case.x.double().abs() @ case.weight.double().abs().mT
    size = torch.linalg.vector_norm(terms) + torch.linalg.vector_norm(base)
    return unit * float(size) / math.sqrt(max(case.in_features, 1)) * 2
