"""The house stands as designed: imports point down, nothing goes in circles, every module has a name of its own."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from tests.import_graph import (
    AUDIT,
    VARIANTS,
    between_rooms,
    cycle,
    graph,
    modules,
    places_that_name_a_variant,
)

# folder -> the folders that it may import
BELOW = {
    "refs": {"refs"},
    "oracles": {"oracles", "refs"},
    "reports": {"reports", "refs"},
    "harness": {"harness", "oracles", "reports", "refs"},
    "lora_lite": {"lora_lite"},
}
BRIDGE = "harness.subjects.lora_lite"  # the one module that imports the default subject
# Rooms of harness/, each above those before it; of the last two neither is above the other.
ROOMS = (("cases",), ("compare",), ("engine",), ("subjects", "plugin"))
# A subject, an oracle and an author may each have a module named for the same method or library; a package keeps its
# exceptions in `errors`.
SHARED_NAMES = {*VARIANTS, "peft", "lora_lite", "errors", "__main__"}


@pytest.mark.parametrize("folder", BELOW)
def test_arrows_point_down(folder: str) -> None:
    """No folder imports one above it, and none imports tests."""
    up = {
        f"{module} -> {other}"
        for module, imported in graph().items()
        for other in imported
        if module.partition(".")[0] == folder and other.partition(".")[0] not in BELOW[folder]
    }
    assert {arrow for arrow in up if not arrow.startswith(f"{BRIDGE} -> lora_lite")} == set()


def test_no_cycle_between_modules() -> None:
    """Typing imports and imports inside functions included."""
    assert not cycle({m: imported for m, imported in graph().items() if not m.startswith("tests")})


@pytest.mark.parametrize("folder", AUDIT)
def test_no_cycle_between_rooms(folder: str) -> None:
    assert not cycle(between_rooms(folder))


def test_the_rooms_of_the_harness_are_in_order() -> None:
    """cases < compare < engine < subjects and plugin."""
    imported = between_rooms("harness")
    for lower, higher in pairwise(ROOMS):
        above = {f"harness.{r}" for rooms in ROOMS[ROOMS.index(higher) :] for r in rooms}
        for each in lower:
            assert not imported[f"harness.{each}"] & above, each


def test_no_test_module_imports_another() -> None:
    """What two checks need stands in harness/compare."""
    questions = {m for m in modules() if m.startswith("harness.test_")}
    assert not {m: found for m in questions if (found := graph()[m] & questions)}


def test_every_module_has_a_name_of_its_own() -> None:
    """Two files of one name are told apart by nobody."""
    named = Counter(m.rpartition(".")[2] for m in modules() if m.partition(".")[0] in AUDIT)
    assert not {name for name, n in named.items() if n > 1} - SHARED_NAMES


def test_a_cycle_would_be_found() -> None:
    assert cycle({"a": ["b"], "b": ["c"], "c": ["a"]})
    assert not cycle({"a": ["b", "a"], "b": ["c"]})


def test_a_variant_named_elsewhere_would_be_counted() -> None:
    """The count is of files of the audit alone, never of its tests."""
    assert not [path for path in places_that_name_a_variant() if path.startswith("tests/")]


def test_a_method_is_named_in_its_own_files_alone() -> None:
    """In those called after it; shipped subjects, the authors' modules and the catalogue of disagreements excepted."""
    assert not places_that_name_a_variant()
