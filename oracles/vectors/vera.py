"""VeRA in PEFT's format: two vectors per module, matrices that all share, and the vectors that are for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from oracles.vectors.chain import Config
from oracles.vectors.draft import Draft
from oracles.vectors.faults import CONV1D, LAYOUT, OTHER, QK
from oracles.vectors.held import Held
from oracles.vectors.meaning import AdaptedModule, Method, Reading, Updates
from oracles.vectors.refused import spoiled
from oracles.vectors.unreadable import Unreadable
from oracles.vectors.update import LowRank

SHARED = {"A": "base_model.vera_A", "B": "base_model.vera_B"}


def _updates(a: AdaptedModule) -> Updates:
    return {a.parameter: _update(a)}


def _update(a: AdaptedModule, *, without: str = "", A: str = "A", B: str = "B") -> LowRank:
    """Eq. (2): ``ΔW = Λ_b B Λ_d A``."""
    b, d = a.factors["b"].double(), a.factors["d"].double()
    left = a.factors[B].double() * (1 if without == "b" else b[:, None])
    right = a.factors[A].double() * (1 if without == "d" else d[:, None])
    return LowRank(right.mT, left.mT) if a.kind == "conv1d" else LowRank(left, right)


def _readings(a: AdaptedModule) -> Iterator[Reading]:
    yield a.read_as("vera.no_b", "λ_b is left out", _update(a, without="b"))
    yield a.read_as("vera.no_d", "λ_d is left out", _update(a, without="d"))
    if "A_last" in a.factors:
        other = _update(a, A="A_last", B="B_last")
        yield a.read_as("vera.last_rows", "the shared matrices are cut at the other end", other)


def _cut(A: Tensor, B: Tensor, inputs: int, outputs: int) -> dict[str, Tensor]:
    """The corner of the shared matrices that a layer uses, and the opposite one where they are larger."""
    factors = {"A": A[:, :inputs], "B": B[:outputs]}
    if (inputs, outputs) != (A.shape[1], B.shape[0]):
        factors |= {"A_last": A[:, -inputs:], "B_last": B[-outputs:]}
    return factors


def _read(held: Held) -> AdaptedModule:
    held.expect_factors({"b", "d"})
    if set(held.shared) != set(SHARED):
        raise Unreadable(f"the adapter lacks VeRA's shared matrices ({', '.join(SHARED.values())})")
    A, B, shape, r = held.shared["A"], held.shared["B"], held.shape, held.rank
    is_square, outputs = shape[0] == shape[1], held.factors["b"].numel()
    conv1d = held.fan_in_fan_out if is_square else outputs == shape[1]
    inputs = shape[0] if conv1d else shape[1]
    held.expect_shape("b", (shape[1] if conv1d else shape[0],))
    held.expect_shape("d", (r,))
    if A.shape[0] != r or B.shape[1] != r or A.shape[1] < inputs or B.shape[0] < outputs:
        raise Unreadable(
            f"VeRA's shared matrices are {tuple(A.shape)} and {tuple(B.shape)}, too small for {held.module}"
        )
    factors = {**held.factors, **_cut(A, B, inputs, outputs)}
    kind = "conv1d" if conv1d else "linear"
    return AdaptedModule(held.module, METHOD, kind, factors, r, replaced=held.whole)


METHOD: Method = Method(
    "vera",
    "VERA",
    {r"vera_lambda_b(\.\w+)?": "b", r"vera_lambda_d(\.\w+)?": "d"},
    updates=_updates,
    readings=(_readings,),
    read=_read,
    shared={r"base_model\.vera_A(\.\w+)?": "A", r"base_model\.vera_B(\.\w+)?": "B"},
)


def vera(draft: Draft, modules: Sequence[str], rank: int = 3) -> Draft:
    """The shared matrices are in the file, as large as the largest layer and cut for the others."""
    layers = {module: draft.layer(module) for module in modules}
    A = draft.draw("", "vera_A", rank, max(la["in"] for la in layers.values()))
    B = draft.draw("", "vera_B", max(la["out"] for la in layers.values()), rank)
    for name, layer in layers.items():
        b, d = draft.draw(name, "b", layer["out"]), draft.draw(name, "d", rank)
        factors = {"b": b, "d": d, **_cut(A, B, layer["in"], layer["out"])}
        draft.modules.append(AdaptedModule(name, METHOD, layer["kind"], factors, rank))
        draft.put(name, "vera_lambda_b", b)
        draft.put(name, "vera_lambda_d", d)
    draft.keys |= {SHARED["A"]: A.to(draft.dtype), SHARED["B"]: B.to(draft.dtype)}
    fan = any(la["kind"] == "conv1d" for la in layers.values())
    own: Config = {"r": rank, "projection_prng_key": 0, "save_projection": True, "vera_dropout": 0.0}
    own |= {"d_initial": 0.1, "fan_in_fan_out": fan, "bias": "none"}
    return draft.finish(METHOD.peft_type, list(modules), **own, init_weights=True, inference_mode=True)


def _equation() -> Iterator[Draft]:
    must = ("vera.no_b", "vera.no_d", "vera.last_rows")
    yield vera(Draft("vera.shared", "mlp", OTHER, must), QK, 3)
    yield vera(Draft("vera.one_module", "mlp", OTHER, must[:2]), QK[:1], 2)
    yield vera(Draft("vera.conv1d", "gpt", LAYOUT, must), CONV1D[:2], 3)
    yield vera(Draft("vera.rank_above_width", "mlp", OTHER, must), QK, 11)


def _refused() -> Iterator[Draft]:
    def without_shared(draft: Draft) -> None:
        for key in SHARED.values():
            del draft.keys[key]

    why = "VeRA's shared matrices are missing"
    yield spoiled("vera_without_shared", why, without_shared, lambda draft: vera(draft, QK, 3))


# An adapter on any modules, and the word in its file that a module may be called as well.
SAMPLE = vera
WORD = "vera_lambda_b"
VECTORS = {"equation": _equation, "refused": _refused}
