"""The commands that are other modules' own: each module is there and has a main."""

from __future__ import annotations

import importlib

import pytest
from adapter_conformance.forwarded import COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_command_stands_for_is_there(name: str) -> None:
    assert callable(importlib.import_module(COMMANDS[name].module).main)
