"""The audit's own version: in every `audit.json`, in SARIF and the wheel; CHANGELOG.md says what it promises."""

from __future__ import annotations

VERSION = "0.1.0"
TOOL = "adapter-conformance"
