"""Plant one fault in a library: its source is changed as it is imported."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.planted.libraries import LIBRARIES
from tests.planted.places import Place, planted

PLANTED = (
    "PLANTED"  # the environment variable that tells a worker which fault of which library: "peft scale.one"
)


def plant(library: str, fault: str) -> None:
    """Change the library's source as it is imported from here on; nothing for "sound". Raises NoSuchPlace."""
    places = LIBRARIES[library].places.get(fault, ())
    assert not isinstance(places, str)
    changed = dict(_source(file, [p for p in places if p.file == file]) for file in {p.file for p in places})
    original = importlib.machinery.SourceFileLoader.get_code

    def get_code(self: Any, fullname: str) -> Any:
        text = changed.get(str(self.path))
        return compile(text, self.path, "exec") if text is not None else original(self, fullname)

    importlib.machinery.SourceFileLoader.get_code = get_code  # type: ignore[method-assign]


def _source(file: str, places: Sequence[Place]) -> tuple[str, str]:
    """(the file that will be imported, its source with the fault)."""
    package, _, inner = file.partition("/")
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / inner
    return str(path), planted(path.read_text(encoding="utf-8"), places)
