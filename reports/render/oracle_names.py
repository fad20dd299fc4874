"""How the review calls the references."""

from __future__ import annotations

from reports.facts import SOURCES
from reports.model import OracleInfo


def oracle_name(oracle: str) -> str:
    """The id as a reader knows it."""
    return SOURCES.get(oracle, oracle)


def with_version(info: OracleInfo) -> str:
    """``PEFT 0.21.2 (live)``; a recording with its date."""
    version = info.version or (info.commit or "")[:7]
    when = f" {info.recorded_on}" if info.kind == "recorded" and info.recorded_on else ""
    if info.kind == "equation":
        return info.title if "float64" in info.title else f"{info.title} (float64)"
    name = info.title if not version or version in info.title else f"{info.title} {version}"
    return f"{name} ({info.kind}{when})"
