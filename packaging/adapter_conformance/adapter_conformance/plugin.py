"""`-p adapter_conformance.plugin`: pytest, and each of its workers, takes the audit's options and hooks up."""

from __future__ import annotations

from adapter_conformance import house

house.enter()
pytest_plugins = ["harness.plugin.hooks"]
