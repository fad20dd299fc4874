"""Keys of rank_pattern and alpha_pattern that are plain words, and the modules whose names they are only part of."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from harness.checkpoints.adapter_config import CONFIG
from harness.checkpoints.adapter_folder import PREFIX, WEIGHTS

PATTERNS = ("rank_pattern", "alpha_pattern")


def keys_of(config: Mapping[str, Any]) -> list[str]:
    """The keys of both options."""
    return [key for option in PATTERNS for key in config.get(option) or {}]


def are_words(keys: Collection[str]) -> bool:
    """Whether each is a name, or the last part of one, and no expression."""
    return bool(keys) and all(re.fullmatch(r"\w+", key) for key in keys)


def resembling(keys: Collection[str], modules: Collection[str]) -> set[str]:
    """The modules in whose names a key stands without being one of their endings at a dot."""
    return {m for m in modules for key in keys if key in m and not re.fullmatch(rf"(.*\.)?{key}", m)}


@contextmanager
def without(folder: Path, modules: Collection[str]) -> Iterator[Path]:
    """A copy of an adapter's folder that is not for these modules, which its configuration lists by name."""
    with tempfile.TemporaryDirectory(prefix="audit-") as place:
        copied = Path(shutil.copytree(folder, Path(place) / "adapter"))
        starts = tuple(f"{PREFIX}{module}." for module in modules)
        tensors = load_file(copied / WEIGHTS)
        save_file({n: t for n, t in tensors.items() if not n.startswith(starts)}, copied / WEIGHTS)
        config = json.loads((copied / CONFIG).read_text(encoding="utf-8"))
        config["target_modules"] = [name for name in config["target_modules"] if name not in modules]
        (copied / CONFIG).write_text(json.dumps(config), encoding="utf-8")
        yield copied


__all__ = ["PATTERNS", "are_words", "keys_of", "resembling", "without"]
