"""The methods, a file each; whatever file of this folder holds a ``VARIANT`` is one, in the order of its record."""

from __future__ import annotations

import importlib
import pkgutil

from oracles.variants.record import Canonical, Form, Mistake, Option, Role, Uniform, Variant

__all__ = ["VARIANTS", "Canonical", "Form", "Mistake", "Option", "Role", "Uniform", "Variant"]


def _found() -> list[Variant]:
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return sorted((m.VARIANT for m in modules if hasattr(m, "VARIANT")), key=lambda v: (v.order, v.id))


VARIANTS: dict[str, Variant] = {v.id: v for v in _found()}
