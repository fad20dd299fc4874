"""A library with one planted fault in a process of its own, so that the references of the audit stay as they are."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))

from tests.planted.libraries import LIBRARIES  # noqa: E402
from tests.planted.planting import PLANTED, plant  # noqa: E402

sys.path.remove(str(ROOT))

LIBRARY, _, FAULT = os.environ[PLANTED].partition(" ")
plant(LIBRARY, FAULT)
FILE, _, NAME = LIBRARIES[LIBRARY].ref.partition(":")
found = importlib.util.spec_from_file_location("planted_subject", ROOT / FILE)
assert found is not None
assert found.loader is not None
module: Any = importlib.util.module_from_spec(found)
sys.modules[found.name] = module  # where dataclasses look for the names of a class's module
found.loader.exec_module(module)
Subject: Any = getattr(module, NAME)
