"""The roof: pytest finds the audit's options and hooks in `harness/plugin.py`."""

pytest_plugins = ["harness.plugin"]
