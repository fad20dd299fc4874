"""An adapter folder in PEFT's format: its tensors by module, and (with a base) what each module's mean."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from harness.checkpoints.adapter_config import AdapterConfig, read_config
from harness.checkpoints.base_checkpoint import BaseCheckpoint
from harness.checkpoints.tensor_folder import TensorFolder, Unreadable
from oracles.vectors.meaning import AdaptedModule

PREFIX = "base_model.model."
WEIGHTS, WEIGHTS_INDEX = "adapter_model.safetensors", "adapter_model.safetensors.index.json"
# The endings of PEFT's names; an adapter's own name may stand in between, as in a raw state dict.
ENDINGS = {
    "LORA": {
        r"lora_A(\.\w+)?\.weight": "A",
        r"lora_B(\.\w+)?\.weight": "B",
        r"lora_B(\.\w+)?\.bias": "bias",
        r"lora_embedding_A(\.\w+)?": "embedding_A",
        r"lora_embedding_B(\.\w+)?": "embedding_B",
        r"lora_magnitude_vector(\.\w+)?": "m",
    },
    "IA3": {r"ia3_l(\.\w+)?": "l"},
    "HRA": {r"hra_u(\.\w+)?": "U"},
    "DELORA": {
        r"delora_A(\.\w+)?": "A",
        r"delora_B(\.\w+)?": "B",
        r"delora_lambda(\.\w+)?": "lambda",
        r"delora_w_norm(\.\w+)?": "w_norm",
    },
    "VERA": {r"vera_lambda_b(\.\w+)?": "b", r"vera_lambda_d(\.\w+)?": "d"},
}
SHARED = {"base_model.vera_A": "A", "base_model.vera_B": "B"}


@dataclass
class Part:
    """One module's tensors in the file: ``keys`` factor -> name in the file, ``whole`` tensors it holds as they are."""

    module: str
    level: int = (
        0  # how many times ".base_layer" stood in the name: nested wrappers of one module's parameters
    )
    keys: dict[str, str] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)


class AdapterFolder:
    """The configuration and the tensors of an adapter. A context manager."""

    def __init__(self, folder: Path) -> None:
        """Raises Unreadable for a folder that is none, or whose tensors are not those of its method."""
        self.config: AdapterConfig = read_config(folder)
        found = [p for p in (folder / WEIGHTS_INDEX, folder / WEIGHTS) if p.is_file()]
        if not found:
            hint = (
                "; adapter_model.bin is a pickle, which is never opened" if any(folder.glob("*.bin")) else ""
            )
            raise Unreadable(f"{folder} has no {WEIGHTS}{hint}")
        sharded = found[0].name == WEIGHTS_INDEX
        self.tensors = TensorFolder(folder if sharded else found[0], WEIGHTS_INDEX)
        self.shared: dict[str, str] = {}
        self.parts = self._parts()
        if not self.parts:
            raise Unreadable(f"{folder / WEIGHTS} holds no tensors of an adapter")

    def __enter__(self) -> AdapterFolder:
        return self

    def __exit__(self, *error: object) -> None:
        self.tensors.__exit__(None, None, None)

    def _parts(self) -> list[Part]:
        found: dict[tuple[str, int], Part] = {}
        for key in self.tensors.names:
            shared = re.sub(r"(vera_[AB])\.\w+$", r"\1", key)
            if self.config.kind == "VERA" and shared in SHARED:
                self.shared[SHARED[shared]] = key
                continue
            module, level, factor, name = self._split(key)
            part = found.setdefault((module, level), Part(module, level))
            held = part.keys if factor else part.whole
            if (factor or name) in held:
                raise Unreadable(
                    f"the adapter holds {key!r} beside {held[factor or name]!r}: one adapter is expected"
                )
            held[factor or name] = key
        return [found[place] for place in sorted(found)]

    def _split(self, key: str) -> tuple[str, int, str, str]:
        """Module, level, factor or "" and the tensor's own name, of a name in the file."""
        if not key.startswith(PREFIX):
            raise Unreadable(f"the adapter holds {key!r}; expected names that start with {PREFIX!r}")
        name = key.removeprefix(PREFIX)
        for ending, factor in ENDINGS[self.config.kind].items():
            match = re.fullmatch(rf"(?P<module>.+?)(?P<inner>(\.base_layer)*)\.{ending}", name)
            if match:
                return match["module"], match["inner"].count("."), factor, ""
        module, _, tensor = name.rpartition(".")
        return module.removesuffix(".base_layer"), 0, "", tensor

    @property
    def dtype(self) -> torch.dtype:
        """Of the first factor: what a library multiplies in."""
        part = next(p for p in self.parts if p.keys or p.whole)
        return self.tensors.dtype(next(iter((part.keys or part.whole).values())))

    def against(self, base: BaseCheckpoint) -> list[AdaptedModule]:
        """What the file means on ``base``, module by module.

        The factors are read here, they are small. Raises Unreadable for tensors that are missing, that nothing in
        the base takes, or of another shape.
        """
        found = [module for part in self.parts for module in self._meant(part, base)]
        self._check_complete(base)
        return found

    def _check_complete(self, base: BaseCheckpoint) -> None:
        adapted = {part.module for part in self.parts if part.keys}
        if self.config.lists_targets:
            missing = [m for m in base.modules if self.config.is_target(m) and m not in adapted]
            if missing:
                raise Unreadable(f"the file says that it is for {missing[0]}, and holds no tensors for it")
        for name in self.config.saved_modules:
            if not any(self.config.is_saved(part.module) and part.whole for part in self.parts):
                raise Unreadable(f"the file says that it holds {name} whole, and does not")

    def _meant(self, part: Part, base: BaseCheckpoint) -> Iterator[AdaptedModule]:
        whole = {tensor: self._whole(part, tensor, base) for tensor in part.whole}
        if not part.keys:
            yield AdaptedModule(part.module, "replace", "linear", {}, replaced=whole)
            return
        factors = {name: self.tensors.tensor(key) for name, key in part.keys.items()}
        for name, factor in factors.items():
            if factor.numel() == 0 or not factor.is_floating_point():
                words = "empty" if factor.numel() == 0 else f"of dtype {factor.dtype}"
                raise Unreadable(f"{part.keys[name]} is {words}, shape {tuple(factor.shape)}")
        reader = MEANT[self.config.kind]
        yield reader(self, part, factors, base, whole)

    def _whole(self, part: Part, tensor: str, base: BaseCheckpoint) -> Tensor:
        name = f"{part.module}.{tensor}"
        trained_bias = tensor == "bias" and self.config.data.get("bias", "none") != "none"
        if not trained_bias and not self.config.is_saved(part.module):
            raise Unreadable(
                f"the adapter holds {part.whole[tensor]!r}, which is no tensor of {self.config.kind} "
                "and of no module that modules_to_save names"
            )
        return self._fits(part.whole[tensor], name, base)

    def _fits(self, key: str, name: str, base: BaseCheckpoint) -> Tensor:
        stored = base.stored(name)
        if stored is None:
            raise Unreadable(f"the adapter holds {key!r}; the base has no {name!r}")
        value = self.tensors.tensor(key)
        shape = base.tensors.shape(stored)
        if tuple(value.shape) != shape:
            raise Unreadable(f"{key} has shape {tuple(value.shape)}, the base's {name} has {shape}")
        return value

    def weight_shape(self, part: Part, base: BaseCheckpoint) -> tuple[int, ...]:
        """Shape of the module's weight in the base; raises Unreadable where it is none, or no target."""
        shape = base.modules.get(part.module)
        if shape is None:
            near = [m for m in base.modules if m.rpartition(".")[2] == part.module.rpartition(".")[2]]
            hint = f" (it has {near[0]!r})" if near else ""
            raise Unreadable(f"the adapter is for {part.module!r}, which the base does not have{hint}")
        if not self.config.is_target(part.module):
            raise Unreadable(
                f"the adapter holds tensors for {part.module!r}, for which its configuration is not"
            )
        return shape

    def common(self, part: Part, base: BaseCheckpoint) -> dict[str, object]:
        """What every method's module has."""
        return {
            "rank": self.config.rank(part.module),
            "default_rank": self.config.default_rank,
            "has_bias": base.stored(f"{part.module}.bias") is not None,
        }


def expect_shape(part: Part, factor: str, tensor: Tensor, *shapes: tuple[int, ...]) -> None:
    """Raises Unreadable unless the tensor has one of the shapes."""
    if tuple(tensor.shape) not in shapes:
        wanted = " or ".join(map(str, shapes))
        raise Unreadable(f"{part.keys[factor]} has shape {tuple(tensor.shape)}, expected {wanted}")


def expect_factors(part: Part, factors: dict[str, Tensor], needed: set[str], optional: set[str]) -> None:
    """Raises Unreadable where a factor is missing or not the method's."""
    for name in sorted(needed - factors.keys()):
        raise Unreadable(
            f"the adapter has no {name} for {part.module}, beside its {', '.join(sorted(factors))}"
        )
    for name in sorted(factors.keys() - needed - optional):
        raise Unreadable(f"the adapter holds {part.keys[name]!r}, for which its configuration has no use")


def _lora(
    folder: AdapterFolder,
    part: Part,
    factors: dict[str, Tensor],
    base: BaseCheckpoint,
    whole: dict[str, Tensor],
) -> AdaptedModule:
    config = folder.config
    embedding = "embedding_A" in factors or "embedding_B" in factors
    if embedding:
        factors = {name.removeprefix("embedding_"): tensor for name, tensor in factors.items()}
        part.keys = {name.removeprefix("embedding_"): key for name, key in part.keys.items()}
    needed = {"A", "B"} | ({"m"} if config.method == "dora" else set())
    expect_factors(part, factors, needed, {"bias"} if config.data.get("lora_bias") else set())
    common = folder.common(part, base) | {
        "alpha": config.alpha(part.module),
        "default_alpha": config.default_alpha,
        "rslora": bool(config.data.get("use_rslora")),
        "replaced": whole,
    }
    if config.target_parameters and part.module not in base.modules:
        return _expert(folder, part, factors, base, common)
    shape = folder.weight_shape(part, base)
    kind = "embedding" if embedding else _lora_kind(folder, part, factors, shape)
    _check_lora(part, factors, kind, shape, int(str(common["rank"])))
    if "bias" in factors and not common["has_bias"]:
        raise Unreadable(
            f"{part.module} has no bias in the base, and the adapter adds one: no merge can hold it"
        )
    if config.method == "dora":
        factors["m"] = factors["m"].flatten()
    return AdaptedModule(part.module, config.method, kind, factors, **common)  # type: ignore[arg-type]


def _lora_kind(folder: AdapterFolder, part: Part, factors: dict[str, Tensor], shape: tuple[int, ...]) -> str:
    if len(shape) > 2:
        return "conv2d"
    outputs, inputs = factors["B"].shape[:1], factors["A"].shape[1:2]
    if shape[0] == shape[1]:
        return "conv1d" if folder.config.fan_in_fan_out else "linear"
    return "conv1d" if (*inputs, *outputs) == shape else "linear"


def _check_lora(part: Part, factors: dict[str, Tensor], kind: str, shape: tuple[int, ...], r: int) -> None:
    if kind == "conv2d":
        point = (1,) * (len(shape) - 2)
        wanted = {"A": (r, *shape[1:]), "B": (shape[0], r, *point), "m": (1, shape[0], *point)}
        outputs = shape[0]
    else:
        inputs, outputs = shape if kind in ("conv1d", "embedding") else (shape[1], shape[0])
        wanted = {"A": (r, inputs), "B": (outputs, r), "m": (outputs,)}
    wanted["bias"] = (outputs,)
    for name, factor in factors.items():
        expect_shape(part, name, factor, wanted[name])


def _expert(
    folder: AdapterFolder,
    part: Part,
    factors: dict[str, Tensor],
    base: BaseCheckpoint,
    common: dict[str, object],
) -> AdaptedModule:
    """Adapted parameters of one module, nested as PEFT names them; which is which the shapes have to tell."""
    parameters = [
        name.rpartition(".")[2]
        for name in base.names
        if name.rpartition(".")[0] == part.module
        and any(name == t or name.endswith(f".{t}") for t in folder.config.target_parameters)
    ]
    levels = [p for p in folder.parts if p.module == part.module]
    if len(parameters) != len(levels):
        raise Unreadable(
            f"the adapter has {len(levels)} pairs of factors for {part.module}, and the base {len(parameters)} "
            "of the parameters that it names"
        )
    order = _assigned(
        folder, levels, [base.tensors.shape(f"{part.module}.{p}") for p in parameters], part.module
    )
    shape = base.tensors.shape(f"{part.module}.{parameters[order[part.level]]}")
    layout = _expert_layouts(folder, part, shape)
    if len(layout) != 1:
        raise Unreadable(
            f"whether the experts of {part.module} are (out, in) or (in, out) their shapes do not tell"
        )
    return AdaptedModule(
        part.module,
        "lora",
        layout[0],
        factors,
        parameter=parameters[order[part.level]],
        experts=shape[0] if len(shape) == 3 else 1,
        **common,  # type: ignore[arg-type]
    )


def _assigned(
    folder: AdapterFolder, levels: list[Part], shapes: list[tuple[int, ...]], module: str
) -> dict[int, int]:
    fits = [
        order
        for order in itertools.permutations(range(len(shapes)))
        if all(_expert_layouts(folder, p, shapes[i]) for p, i in zip(levels, order, strict=True))
    ]
    if len(fits) != 1:
        words = "no assignment fits" if not fits else "more than one assignment fits"
        raise Unreadable(f"which factors belong to which parameter of {module} cannot be told: {words}")
    return {part.level: index for part, index in zip(levels, fits[0], strict=True)}


def _expert_layouts(folder: AdapterFolder, part: Part, shape: tuple[int, ...]) -> list[str]:
    """Layouts of a parameter of ``shape`` that fit a pair of factors."""
    A, B = (folder.tensors.shape(part.keys[name]) for name in ("A", "B"))
    r = folder.config.rank(part.module)
    E = shape[0] if len(shape) == 3 else 1
    if len(A) != 2 or len(B) != 2 or A[0] != r * E or B[1] != r * E:
        return []
    if len(shape) == 2:
        return ["linear"] if shape == (B[0], A[1]) else []
    found = ["experts_out_in"] if shape[1:] == (B[0], A[1]) else []
    return [*found, "experts_in_out"] if shape[1:] == (A[1], B[0]) else found


def _ia3(
    folder: AdapterFolder,
    part: Part,
    factors: dict[str, Tensor],
    base: BaseCheckpoint,
    whole: dict[str, Tensor],
) -> AdaptedModule:
    expect_factors(part, factors, {"l"}, set())
    shape, gate = folder.weight_shape(part, base), factors["l"]
    inner = folder.config.is_feedforward(part.module)
    if len(shape) > 2:
        kind, sizes = "conv2d", (shape[1] if inner else shape[0],)
        expect_shape(part, "l", gate, *((1, n, *(1,) * (len(shape) - 2)) for n in sizes))
    else:
        # Either layout: the gate's own length says which, the flag where the weight is square.
        index = 1 if inner else 0
        expect_shape(part, "l", gate, *((1, n) if inner else (n, 1) for n in dict.fromkeys(shape)))
        square = shape[0] == shape[1]
        as_linear = not folder.config.fan_in_fan_out if square else gate.numel() == shape[index]
        kind = "linear" if as_linear else "conv1d"
    return AdaptedModule(
        part.module,
        "ia3",
        kind,
        {"l": gate.flatten()},
        has_bias=base.stored(f"{part.module}.bias") is not None,
        feedforward=inner,
        replaced=whole,
    )


def _hra(
    folder: AdapterFolder,
    part: Part,
    factors: dict[str, Tensor],
    base: BaseCheckpoint,
    whole: dict[str, Tensor],
) -> AdaptedModule:
    expect_factors(part, factors, {"U"}, set())
    shape, r = folder.weight_shape(part, base), folder.config.rank(part.module)
    columns = 1
    for size in shape[1:]:
        columns *= size
    expect_shape(part, "U", factors["U"], (columns, r))
    orthonormal = bool(folder.config.data.get("apply_GS"))
    kind = "conv2d" if len(shape) > 2 else "linear"
    return AdaptedModule(part.module, "hra", kind, factors, r, gram_schmidt=orthonormal, replaced=whole)


def _delora(
    folder: AdapterFolder,
    part: Part,
    factors: dict[str, Tensor],
    base: BaseCheckpoint,
    whole: dict[str, Tensor],
) -> AdaptedModule:
    expect_factors(part, factors, {"A", "B", "lambda", "w_norm"}, set())
    (outputs, inputs), r = folder.weight_shape(part, base), folder.config.rank(part.module)
    wanted = {"A": (r, inputs), "B": (outputs, r), "lambda": (1,), "w_norm": (inputs,)}
    for name, shape in wanted.items():
        expect_shape(part, name, factors[name], shape)
    return AdaptedModule(
        part.module,
        "delora",
        "linear",
        factors,
        r,
        default_rank=folder.config.default_rank,
        default_alpha=folder.config.default_alpha,
        replaced=whole,
    )


def _vera(
    folder: AdapterFolder,
    part: Part,
    factors: dict[str, Tensor],
    base: BaseCheckpoint,
    whole: dict[str, Tensor],
) -> AdaptedModule:
    expect_factors(part, factors, {"b", "d"}, set())
    if set(folder.shared) != {"A", "B"}:
        raise Unreadable("the adapter lacks VeRA's shared matrices (base_model.vera_A, base_model.vera_B)")
    A, B = (folder.tensors.tensor(folder.shared[name]) for name in ("A", "B"))
    shape, r = folder.weight_shape(part, base), folder.config.rank(part.module)
    square = shape[0] == shape[1]
    outputs = factors["b"].numel()
    conv1d = folder.config.fan_in_fan_out if square else outputs == shape[1]
    inputs = shape[0] if conv1d else shape[1]
    expect_shape(part, "b", factors["b"], (shape[1] if conv1d else shape[0],))
    expect_shape(part, "d", factors["d"], (r,))
    if A.shape[0] != r or B.shape[1] != r or A.shape[1] < inputs or B.shape[0] < outputs:
        raise Unreadable(
            f"VeRA's shared matrices are {tuple(A.shape)} and {tuple(B.shape)}, too small for {part.module}"
        )
    cut = {**factors, "A": A[:, :inputs], "B": B[:outputs]}
    if (inputs, outputs) != (A.shape[1], B.shape[0]):
        cut |= {"A_last": A[:, -inputs:], "B_last": B[-outputs:]}
    return AdaptedModule(part.module, "vera", "conv1d" if conv1d else "linear", cut, r, replaced=whole)


MEANT = {"LORA": _lora, "IA3": _ia3, "HRA": _hra, "DELORA": _delora, "VERA": _vera}
