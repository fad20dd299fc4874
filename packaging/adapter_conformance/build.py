"""Hatchling's build step: the audit's four folders go into the wheel as `adapter_conformance/_house/`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

CHECKOUT = Path(__file__).resolve().parents[2]
FOLDERS = ("harness", "oracles", "refs", "reports")
LEFT_OUT = {"__pycache__", "out"}


def files() -> Iterator[Path]:
    """What is shipped, relative to the checkout: all of the four folders but caches and what runs have written."""
    for folder in FOLDERS:
        for path in sorted((CHECKOUT / folder).rglob("*")):
            relative = path.relative_to(CHECKOUT)
            if path.is_file() and not LEFT_OUT & set(relative.parts) and path.suffix != ".pyc":
                yield relative


class House(BuildHookInterface):
    """Names the files and where they go."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it writes the wheel."""
        place = "adapter_conformance/_house"
        build_data["force_include"] |= {
            str(CHECKOUT / file): f"{place}/{file.as_posix()}" for file in files()
        }
        build_data["force_include"][str(CHECKOUT / "LICENSE")] = f"{place}/LICENSE"
