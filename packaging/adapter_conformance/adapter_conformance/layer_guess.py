"""What one small layer of a library tells: which of its parameters has the shape of which canonical tensor.

A guess for a file that a person goes over: shapes are chosen so that no two canonical tensors of a method are alike.
"""

from __future__ import annotations

import ast
import importlib
import keyword
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

OUT, IN, RANK = 7, 11, 2
METHODS = {  # aspect -> what its method is called in most libraries
    "init": ("reset_parameters", "reset_lora_parameters", "init_weights", "__init__"),
    "shapes": ("__init__",),
    "scale": ("__init__",),
    "forward": ("forward",),
    "merge": ("merge", "merge_weights"),
    "dropout": ("forward",),
}


@dataclass(frozen=True)
class SlotLine:
    """One line of the subject file: a canonical name, the code for it, and what shape is wanted."""

    name: str
    code: str
    words: str


@dataclass
class Guess:
    """What was found; ``open``: what a person has to say. ``module``, ``symbols``: where the layer's class is."""

    slots: dict[str, list[SlotLine]]
    open: list[str] = field(default_factory=list)
    module: str | None = None
    symbols: dict[str, str] = field(default_factory=dict)


def guess(library: str, layer: str, variants: Sequence[str]) -> Guess:
    """Make a layer of each variant here, if the library is here; else leave everything open."""
    from oracles.variants import VARIANTS

    found = Guess({})
    for variant in variants:
        made = _made(library, layer, variant, found)
        live = dict(_named_tensors(made)) if made is not None else {}
        found.slots[variant] = [_line(t, variant, live, found) for t in VARIANTS[variant].tensors]
        if made is not None and found.module is None:
            _place(type(made), found)
    return found


def _made(library: str, layer: str, variant: str, found: Guess) -> Any:
    """The library's own layer, or None with the reason said."""
    import torch

    from oracles.implementation import AdapterSpec

    spec = AdapterSpec(variant, rank=RANK, alpha=3.0)
    try:
        names = _imported(library, layer)
        return eval(layer, {**names, "base": torch.nn.Linear(IN, OUT), "spec": spec})
    except Exception as error:
        found.open.append(
            f"adapt, for {variant}: the layer could not be made ({type(error).__name__}: {error})"
        )
        return None


def _imported(library: str, layer: str) -> dict[str, Any]:
    """What the expression's names stand for: the library under its own name."""
    importlib.import_module(library)
    top = library.partition(".")[0]
    return {top: importlib.import_module(top)}


def _named_tensors(layer: Any) -> Mapping[str, Any]:
    return {**dict(layer.named_parameters()), **dict(layer.named_buffers())}


def _line(canonical: Any, variant: str, live: Mapping[str, Any], found: Guess) -> SlotLine:
    from oracles.implementation import AdapterSpec

    shape = tuple(canonical.shape(OUT, IN, AdapterSpec(variant, rank=RANK, alpha=3.0)))
    words = "shape " + _symbolic(shape)
    fits = [name for name, t in live.items() if tuple(t.shape) == shape]
    turned = [name for name, t in live.items() if len(shape) == 2 and tuple(t.shape) == shape[::-1]]
    if len(fits) == 1:
        return SlotLine(canonical.name, f"Slot({_path(fits[0])})", words)
    if not fits and len(turned) == 1:
        return SlotLine(canonical.name, f"Slot({_path(turned[0])}, lambda t: t.T)", words)
    found.open.append(f"slots: which tensor is {canonical.name}, {words}, of {variant}")
    attribute = canonical.name + "_" * keyword.iskeyword(canonical.name)
    return SlotLine(canonical.name, f"Slot(layer.{attribute})", f"TO FILL IN: {words}")


def _path(name: str) -> str:
    """``layer.down.0.weight`` as Python reads it."""
    parts = ["layer"]
    for part in name.split("."):
        parts.append(f"[{part}]" if part.isdigit() else f".{part}")
    code = "".join(parts)
    return code if _parses(code) else f"dict(layer.named_parameters())[{name!r}]"


def _parses(code: str) -> bool:
    try:
        ast.parse(code, mode="eval")
    except SyntaxError:
        return False
    return True


def _symbolic(shape: tuple[int, ...]) -> str:
    names = {OUT: "out", IN: "in", RANK: "r"}
    inner = ", ".join(names.get(n, str(n)) for n in shape)
    return f"({inner},)" if len(shape) == 1 else f"({inner})"


def _place(cls: type, found: Guess) -> None:
    """Where the layer's class is, and its methods by the names that they mostly have."""
    if cls.__module__.startswith("torch."):
        return
    found.module = cls.__module__
    for aspect, names in METHODS.items():
        own = next((n for n in names if n in vars(cls)), None)
        if own:
            found.symbols[aspect] = f"{cls.__qualname__}.{own}"
