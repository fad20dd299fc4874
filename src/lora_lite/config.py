"""What to adapt with: one frozen dataclass per variant over :class:`AdapterConfig`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

__all__ = [
    "AdapterConfig",
    "DeLoRAConfig",
    "DoRAConfig",
    "HRAConfig",
    "IA3Config",
    "LoRAConfig",
    "PiSSAConfig",
]


def names(value: Any, field: str) -> str | tuple[str, ...] | None:
    """A name list as a tuple; a regular expression (a string) and None as they are."""
    if value is None or isinstance(value, str):
        return value
    entries = tuple(value) if isinstance(value, Iterable) else ()
    if not entries or not all(isinstance(entry, str) for entry in entries):
        raise ValueError(f"{field} must be a regular expression or a list of names, got {value!r}")
    return entries


def check_rank(rank: Any, what: str = "rank") -> None:
    """Raises ValueError unless ``rank`` is an int of at least 1."""
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"{what} must be an integer of at least 1, got {rank!r}")


def check_number(field: str, value: Any, low: float, high: float, closed: bool = False) -> None:
    """Raises ValueError unless ``low < value < high`` (``low <= value`` where ``closed``)."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (low < value < high or (closed and value == low)):
        lower = f"at least {low:g}" if closed else f"above {low:g}"
        upper = "finite" if math.isinf(high) else f"below {high:g}"
        raise ValueError(f"{field} must be a number {lower} and {upper}, got {value!r}")


def check_flag(field: str, value: Any) -> None:
    """Raises ValueError unless ``value`` is a bool."""
    if not isinstance(value, bool):
        raise ValueError(f"{field} must be True or False, got {value!r}")


Pattern = tuple[tuple[str, float], ...]


def pattern(field: str, value: Any) -> Pattern:
    """``{regular expression: value}`` as pairs. Raises ValueError for another thing or a broken expression."""
    pairs = tuple(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, tuple) or not all(isinstance(p, tuple) and len(p) == 2 for p in pairs):
        raise ValueError(f"{field} must map layer names to values, got {value!r}")
    for name, _ in pairs:
        try:
            re.compile(name)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"{field} must map layer names to values, but {name!r} is none: {error}"
            ) from None
    return pairs


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What every variant shares: which layers to adapt.

    targets: a list of names (``"q_proj"``: every layer called so; ``"mlp.c_proj"``: a longer ending), or one
        regular expression that the full name must match, or ``"all-linear"`` (output head left alone), or
        None: the defaults of the model's architecture. A model that is itself one linear layer needs none.
    exclude: names or one regular expression to leave out.
    layers: indices of the blocks to adapt (``model.layers.3.…`` is 3), or None: all.
    """

    variant: ClassVar[str] = ""
    patterns: ClassVar[
        dict[str, str]
    ] = {}  # a value that layers can have for themselves -> the field that says so

    targets: str | tuple[str, ...] | None = None
    exclude: str | tuple[str, ...] | None = None
    layers: tuple[int, ...] | None = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        # A dataclass answers an unknown field with a TypeError that names one of them and no alternative.
        known = [f.name for f in fields(cls)]
        if args:
            raise ValueError(f"{cls.__name__} takes its fields by name: {', '.join(known)}")
        if unknown := sorted(set(kwargs) - set(known)):
            raise ValueError(f"{cls.__name__} has no field {', '.join(unknown)}; it has {', '.join(known)}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for field in ("targets", "exclude"):
            object.__setattr__(self, field, names(getattr(self, field), field))
        object.__setattr__(self, "layers", self._indices())
        for field in self.patterns.values():
            object.__setattr__(self, field, pattern(field, getattr(self, field)))
        self.check()
        for field, source in self.patterns.items():
            for name, value in getattr(self, source):
                self.check_value(f"{source}[{name!r}]", field, value)

    def _indices(self) -> tuple[int, ...] | None:
        if self.layers is None:
            return None
        given: Any = self.layers
        indices = tuple(given) if isinstance(given, Iterable) else (given,)
        if not indices or not all(type(index) is int and index >= 0 for index in indices):
            raise ValueError(f"layers must be block indices of at least 0, got {self.layers!r}")
        return indices

    def check(self) -> None:
        """Raises ValueError for a value that no layer could be adapted with."""

    def check_value(self, what: str, field: str, value: Any) -> None:
        """Raises ValueError unless ``value`` can be the config's ``field``; ``what`` is where it was given."""
        if field == "rank":
            check_rank(value, what)
        else:
            check_number(what, value, 0.0, math.inf)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; :func:`lora_lite.config_from_dict` is the inverse."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        maps = set(self.patterns.values())
        plain = {
            k: dict(v) if k in maps else list(v) if isinstance(v, tuple) else v for k, v in values.items()
        }
        return {"variant": self.variant, **plain}


@dataclass(frozen=True, kw_only=True)
class LoRAConfig(AdapterConfig):
    """rank r; alpha, the scale is alpha / r, or alpha / √r with ``rslora``; dropout on the adapter's input.

    rank_pattern, alpha_pattern: {ending of a layer's name, as a regular expression: its own rank or alpha}. The
        first one that fits counts, as in PEFT.
    """

    variant: ClassVar[str] = "lora"
    patterns: ClassVar[dict[str, str]] = {"rank": "rank_pattern", "alpha": "alpha_pattern"}

    rank: int = 8
    alpha: float = 8.0
    dropout: float = 0.0
    rslora: bool = False
    rank_pattern: Pattern | Mapping[str, int] = ()
    alpha_pattern: Pattern | Mapping[str, float] = ()

    def check(self) -> None:
        check_rank(self.rank)
        check_number("alpha", self.alpha, 0.0, math.inf)
        check_number("dropout", self.dropout, 0.0, 1.0, closed=True)
        check_flag("rslora", self.rslora)


@dataclass(frozen=True, kw_only=True)
class PiSSAConfig(LoRAConfig):
    """As LoRA; rank at most min(in_features, out_features)."""

    variant: ClassVar[str] = "pissa"


@dataclass(frozen=True, kw_only=True)
class DoRAConfig(LoRAConfig):
    """As LoRA; the dropped input is used for the direction and for the magnitude's correction."""

    variant: ClassVar[str] = "dora"


@dataclass(frozen=True, kw_only=True)
class IA3Config(AdapterConfig):
    """feedforward: which of the adapted layers are gated at their input instead of their output.

    Names or a regular expression as in ``targets``; True: all; False: none; None: the architecture's.
    """

    variant: ClassVar[str] = "ia3"

    feedforward: bool | str | tuple[str, ...] | None = None

    def check(self) -> None:
        if not isinstance(self.feedforward, bool):
            object.__setattr__(self, "feedforward", names(self.feedforward, "feedforward"))


@dataclass(frozen=True, kw_only=True)
class HRAConfig(AdapterConfig):
    """rank: how many reflections; ``gram_schmidt``: I - 2QQᵀ instead of the chain.

    A fresh adapter needs an even rank unless ``gram_schmidt``; a file of another library's may have an odd one.
    """

    variant: ClassVar[str] = "hra"

    rank: int = 8
    gram_schmidt: bool = False

    def check(self) -> None:
        check_rank(self.rank)
        check_flag("gram_schmidt", self.gram_schmidt)


@dataclass(frozen=True, kw_only=True)
class DeLoRAConfig(AdapterConfig):
    """rank r; lambda0, the initial boundary λ; dropout on the adapter's input.

    rank_pattern, lambda0_pattern: {ending of a layer's name, as a regular expression: its own rank or lambda0}.
    """

    variant: ClassVar[str] = "delora"
    patterns: ClassVar[dict[str, str]] = {"rank": "rank_pattern", "lambda0": "lambda0_pattern"}

    rank: int = 8
    lambda0: float = 15.0
    dropout: float = 0.0
    rank_pattern: Pattern | Mapping[str, int] = ()
    lambda0_pattern: Pattern | Mapping[str, float] = ()

    def check(self) -> None:
        check_rank(self.rank)
        check_number("lambda0", self.lambda0, 0.0, math.inf)
        check_number("dropout", self.dropout, 0.0, 1.0, closed=True)
