"""A reference-conformance audit for adapter libraries.

For a subject file: ``Implementation, Adapted, AdapterSpec, Slot, Unsupported`` (torch) or ``ArrayImplementation``
(numpy). For a test suite of your own: :func:`parametrize_with_claims`. The command is ``adapter-conformance``.

Importing this package loads nothing else: each name is fetched when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adapter_conformance.interface import MODULES, module_of

if TYPE_CHECKING:
    from adapter_conformance.own_suite import parametrize_with_claims
    from oracles.array_implementation import ArrayImplementation
    from oracles.implementation import Adapted, AdapterSpec, Implementation, Slot, Unsupported

__all__ = [
    "Adapted",
    "AdapterSpec",
    "ArrayImplementation",
    "Implementation",
    "Slot",
    "Unsupported",
    "parametrize_with_claims",
]


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return getattr(module_of(MODULES[name]), name)
    if name == "parametrize_with_claims":
        from adapter_conformance.own_suite import parametrize_with_claims

        return parametrize_with_claims
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
