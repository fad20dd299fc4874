"""Where a run reads and writes unless it is told otherwise. Apart from what does it: options cost no slow import."""

from __future__ import annotations

from pathlib import Path

REPORT = Path("docs/audit/variants_review_v2.md")
AUDIT_JSON = Path("reports/out/audit.json")
PRIOR = Path("docs/audit/variants_review.toml")
