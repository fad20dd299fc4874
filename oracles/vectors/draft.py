"""One vector in the making: an adapter folder in PEFT's format, and what it means.

The tensors are drawn, not trained: none is near its initial value, where a wrong reading looks right.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from oracles.vectors.bases import BASES, base_tensors, layer_of, numbers
from oracles.vectors.chain import Config
from oracles.vectors.meaning import AdaptedModule
from oracles.vectors.readings import Reading, wrong_readings

PREFIX = "base_model.model."
Expect = Literal["apply", "refuse", "apply_or_refuse"]
LORA_DEFAULTS: Config = {
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "lora_bias": False,
    "lora_dropout": 0.0,
    "use_dora": False,
    "use_rslora": False,
}


@dataclass
class Draft:
    """A vector: ``keys`` and ``config`` are what the folder holds, ``modules`` what they mean."""

    id: str
    base: str
    source: str  # the kind of public fault that it is for
    must: tuple[str, ...] = ()  # readings that it exists to tell apart
    expect: Expect = "apply"
    config: Config = field(default_factory=dict)
    keys: dict[str, Tensor] = field(default_factory=dict)
    modules: list[AdaptedModule] = field(default_factory=list)
    moved: dict[str, dict[str, str]] = field(
        default_factory=dict
    )  # reading -> module -> where it lands instead
    tied: str = ""  # a tensor that a tie changes as well, wrongly
    why: str = ""  # what is wrong with a folder that has to be refused
    dtype: torch.dtype = torch.float32
    files: dict[str, bytes | None] = field(default_factory=dict)  # a file's bytes instead; None: no such file

    @property
    def model(self) -> Config:
        """The base's description."""
        return BASES[self.base]

    def draw(self, module: str, name: str, *shape: int, low: int = 8, high: int = 100) -> Tensor:
        """One factor, the same for the same names."""
        return numbers(f"{self.id}/{module}/{name}", shape, low, high)

    def put(self, module: str, ending: str, tensor: Tensor, dtype: torch.dtype | None = None) -> None:
        """One tensor of the file, under PEFT's name."""
        self.keys[f"{PREFIX}{module}.{ending}"] = tensor.to(dtype or self.dtype).contiguous()

    def finish(self, kind: str, targets: Any, **more: Any) -> Draft:
        """The configuration file."""
        self.config = {"peft_type": kind, "base_model_name_or_path": "", "target_modules": targets, **more}
        return self


def lora(
    draft: Draft,
    modules: Sequence[str],
    rank: int = 3,
    alpha: float = 7,
    *,
    targets: Any = None,
    ranks: Mapping[str, int] | None = None,
    alphas: Mapping[str, float] | None = None,
    rslora: bool = False,
    dora: bool = False,
    pissa: bool = False,
    bias: bool = False,
    dtypes: Mapping[str, torch.dtype] | None = None,
    **more: Any,
) -> Draft:
    """LoRA, DoRA or PiSSA on modules named in full; ``ranks`` and ``alphas`` are the file's patterns."""
    ranks, alphas = dict(ranks or {}), dict(alphas or {})
    method = "dora" if dora else "pissa" if pissa else "lora"
    for module in modules:
        r, scaled = _pattern(ranks, module, rank), _pattern(alphas, module, alpha)
        layer = layer_of(draft.model, module)
        factors = _lora_factors(draft, module, layer, int(r), dora, bias)
        draft.modules.append(
            AdaptedModule(
                module,
                method,
                layer["kind"],
                factors,
                int(r),
                scaled,
                rslora,
                rank,
                alpha,
                has_bias=bool(layer.get("bias")),
                parts=_parts(draft, module),
            )
        )
        _put_lora(draft, module, layer["kind"], factors, dtypes or {})
    own: Config = {"r": rank, "lora_alpha": alpha, "use_rslora": rslora, "use_dora": dora, "lora_bias": bias}
    own |= {"rank_pattern": ranks, "alpha_pattern": alphas}
    own |= {"init_lora_weights": "pissa" if pissa else True}
    return draft.finish(
        "LORA", targets if targets is not None else list(modules), **{**LORA_DEFAULTS, **own, **more}
    )


def _pattern(patterns: Mapping[str, float], module: str, default: float) -> float:
    """The first pattern, in the file's order, that ends the module's name at a dot."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _parts(draft: Draft, module: str) -> tuple[int, ...]:
    return (
        {"attn.qkv_proj": (8, 3, 4), "mlp.gate_up_proj": (7, 7)}.get(module, ())
        if draft.base == "fused"
        else ()
    )


def sizes(layer: Config) -> tuple[int, int]:
    """Inputs and outputs of a layer, in PEFT's words."""
    if layer["kind"] == "embedding":
        return layer["number"], layer["dim"]
    return layer["in"], layer["out"]


def _lora_factors(
    draft: Draft, module: str, layer: Config, r: int, dora: bool, bias: bool
) -> dict[str, Tensor]:
    inputs, outputs = sizes(layer)
    kernel = tuple(layer["kernel"]) if layer["kind"] == "conv2d" else ()
    point = (1, 1) if kernel else ()
    factors = {
        "A": draft.draw(module, "A", r, inputs, *kernel),
        "B": draft.draw(module, "B", outputs, r, *point),
    }
    if dora:
        factors["m"] = draft.draw(module, "m", outputs, low=40, high=120).abs()
    if bias:
        factors["bias"] = draft.draw(module, "bias", outputs)
    return factors


def _put_lora(
    draft: Draft, module: str, kind: str, factors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]
) -> None:
    names = {"A": "lora_A.weight", "B": "lora_B.weight", "bias": "lora_B.bias", "m": "lora_magnitude_vector"}
    if kind == "embedding":
        names |= {"A": "lora_embedding_A", "B": "lora_embedding_B"}
    for factor, tensor in factors.items():
        # A convolution's magnitude is saved as (1, out, 1, 1).
        shaped = tensor.reshape(1, -1, 1, 1) if factor == "m" and kind == "conv2d" else tensor
        draft.put(module, names[factor], shaped, dtypes.get(factor))


def experts(draft: Draft, parameters: Sequence[str], rank: int = 2, alpha: float = 5, **more: Any) -> Draft:
    """LoRA on stacked expert parameters of ``mlp.experts``, the first one innermost in the file's names."""
    layer = layer_of(draft.model, "mlp.experts")
    shapes = {p["name"]: tuple(p["shape"]) for p in layer["parameters"]}
    rslora = bool(more.get("use_rslora"))
    chosen = [name for name in shapes if name in parameters]
    for position, name in enumerate(chosen):
        E, first, second = shapes[name]
        inputs, outputs = (second, first) if layer["layout"] == "out_in" else (first, second)
        factors = {
            "A": draft.draw(name, "A", rank * E, inputs),
            "B": draft.draw(name, "B", outputs, rank * E),
        }
        kind = f"experts_{layer['layout']}"
        draft.modules.append(
            AdaptedModule(
                "mlp.experts",
                "lora",
                kind,
                factors,
                rank,
                alpha,
                rslora,
                rank,
                alpha,
                parameter=name,
                experts=E,
            )
        )
        inner = ".base_layer" * (len(chosen) - 1 - position)
        draft.put(f"mlp.experts{inner}", "lora_A.weight", factors["A"])
        draft.put(f"mlp.experts{inner}", "lora_B.weight", factors["B"])
    own: Config = {
        "r": rank,
        "lora_alpha": alpha,
        "target_parameters": [f"mlp.experts.{p}" for p in sorted(parameters)],
    }
    return draft.finish("LORA", [], **{**LORA_DEFAULTS, **own, **more})


def saved(draft: Draft, module: str, tensors: Mapping[str, Tensor] | None = None, ending: str = "") -> Draft:
    """A module that the file holds whole (modules_to_save), or its trained bias."""
    whole = dict(tensors or {})
    if not whole:
        for name, value in base_like(draft, module).items():
            whole[name] = draft.draw(module, f"saved {name}", *value.shape)
    for name, value in whole.items():
        draft.put(module, f"{ending}{name}", value)
    same = [m for m in draft.modules if m.module == module]
    if same:
        merged = {**same[0].replaced, **whole}
        draft.modules[draft.modules.index(same[0])] = _with(same[0], merged)
    else:
        kind = layer_of(draft.model, module)["kind"]
        draft.modules.append(AdaptedModule(module, "replace", kind, {}, replaced=whole))
    return draft


def _with(module: AdaptedModule, replaced: dict[str, Tensor]) -> AdaptedModule:
    import dataclasses

    return dataclasses.replace(module, replaced=replaced)


def base_like(draft: Draft, module: str) -> dict[str, Tensor]:
    """A module's tensors in the base, by their last names."""
    tensors = base_tensors(draft.model)
    tensors |= {new: tensors[old] for new, old in draft.model.get("tied", {}).items()}
    return {n.removeprefix(f"{module}."): v for n, v in tensors.items() if n.rpartition(".")[0] == module}


def ia3(draft: Draft, modules: Sequence[str], feedforward: Sequence[str] = (), **more: Any) -> Draft:
    """(IA)³ gates; those of ``feedforward`` on the input."""
    listed = more.pop("feedforward_modules", list(feedforward))
    for module in modules:
        layer, inner = layer_of(draft.model, module), module in feedforward
        n = sizes(layer)[0 if inner else 1]
        gate = draft.draw(module, "l", n, low=16, high=120)
        draft.modules.append(
            AdaptedModule(
                module, "ia3", layer["kind"], {"l": gate}, has_bias=bool(layer.get("bias")), feedforward=inner
            )
        )
        shape = (1, n, 1, 1) if layer["kind"] == "conv2d" else (1, n) if inner else (n, 1)
        draft.put(module, "ia3_l", gate.reshape(shape))
    own = {
        "feedforward_modules": listed,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_ia3_weights": True,
    }
    return draft.finish("IA3", more.pop("targets", list(modules)), **{**own, **more})


def hra(draft: Draft, modules: Sequence[str], rank: int = 4, gram_schmidt: bool = False) -> Draft:
    """Reflections; no two vectors alike, so that their order matters."""
    for module in modules:
        layer = layer_of(draft.model, module)
        kernel = layer.get("kernel", [1, 1])
        U = draft.draw(module, "U", layer["in"] * kernel[0] * kernel[1], rank)
        draft.modules.append(
            AdaptedModule(module, "hra", layer["kind"], {"U": U}, rank, gram_schmidt=gram_schmidt)
        )
        draft.put(module, "hra_u", U)
    own: Config = {
        "r": rank,
        "apply_GS": gram_schmidt,
        "init_weights": True,
        "bias": "none",
        "inference_mode": True,
    }
    return draft.finish("HRA", list(modules), **own)


def delora(
    draft: Draft,
    modules: Sequence[str],
    rank: int = 3,
    *,
    ranks: Mapping[str, int] | None = None,
    **more: Any,
) -> Draft:
    """DeLoRA with a trained λ that is not the configuration's, and a w_norm that is the base's."""
    ranks, initial = dict(ranks or {}), float(more.pop("delora_lambda", 15.0))
    base = base_tensors(draft.model)
    for module in modules:
        layer, r = layer_of(draft.model, module), int(_pattern(ranks, module, rank))
        w_norm = torch.linalg.vector_norm(base[f"{module}.weight"], dim=0)
        factors = {
            "A": draft.draw(module, "A", r, layer["in"]),
            "B": draft.draw(module, "B", layer["out"], r),
            "lambda": draft.draw(module, "lambda", 1, low=90, high=120).abs(),
            "w_norm": (w_norm * 64).round() / 64,
        }
        draft.modules.append(
            AdaptedModule(
                module, "delora", layer["kind"], factors, r, default_alpha=initial, default_rank=rank
            )
        )
        for name, factor in factors.items():
            draft.put(module, f"delora_{name}", factor)
    own: Config = {
        "r": rank,
        "delora_lambda": initial,
        "module_dropout": 0.0,
        "bias": "none",
        "rank_pattern": ranks,
    }
    own |= {"lambda_pattern": {}, "init_weights": True, "inference_mode": True}
    return draft.finish("DELORA", list(modules), **{**own, **more})


def vera(draft: Draft, modules: Sequence[str], rank: int = 3) -> Draft:
    """VeRA with its shared matrices in the file, as large as the largest layer and cut for the others."""
    layers = {module: layer_of(draft.model, module) for module in modules}
    A = draft.draw("", "vera_A", rank, max(la["in"] for la in layers.values()))
    B = draft.draw("", "vera_B", max(la["out"] for la in layers.values()), rank)
    for module, layer in layers.items():
        i, o = layer["in"], layer["out"]
        factors = {
            "A": A[:, :i],
            "B": B[:o],
            "b": draft.draw(module, "b", o),
            "d": draft.draw(module, "d", rank),
        }
        if (i, o) != (A.shape[1], B.shape[0]):
            factors |= {"A_last": A[:, -i:], "B_last": B[-o:]}
        draft.modules.append(AdaptedModule(module, "vera", layer["kind"], factors, rank))
        draft.put(module, "vera_lambda_b", factors["b"])
        draft.put(module, "vera_lambda_d", factors["d"])
    draft.keys |= {"base_model.vera_A": A.to(draft.dtype), "base_model.vera_B": B.to(draft.dtype)}
    fan = any(la["kind"] == "conv1d" for la in layers.values())
    own: Config = {
        "r": rank,
        "projection_prng_key": 0,
        "save_projection": True,
        "vera_dropout": 0.0,
        "d_initial": 0.1,
    }
    own |= {"fan_in_fan_out": fan, "bias": "none", "init_weights": True, "inference_mode": True}
    return draft.finish("VERA", list(modules), **own)


def readings(draft: Draft) -> dict[str, Reading]:
    """The wrong readings of the whole file: each module's of the same name together, and those of the file."""
    found: dict[str, Reading] = {}
    for module in draft.modules:
        for reading in wrong_readings(module):
            before = found.get(reading.id)
            updates = {**(before.updates if before else {}), **reading.updates}
            found[reading.id] = Reading(reading.id, reading.sentence, updates)
    return found


def right_updates(draft: Draft) -> dict[str, Any]:
    """Full tensor name -> update, of the right reading."""
    return {name: update for module in draft.modules for name, update in module.updates().items()}
