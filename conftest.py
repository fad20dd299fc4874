"""The roof: pytest finds the audit's options and hooks in `harness/plugin/hooks.py`."""

pytest_plugins = ["harness.plugin.hooks"]
