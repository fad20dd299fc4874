"""A badge per variant: the JSON that shields.io's endpoint badge reads."""

from __future__ import annotations

import json
from collections.abc import Mapping

from reports.model import Audit
from reports.text import one_line

COLOURS = {"Faithful": "brightgreen", "Faithful-with-doc-gap": "green", "Partial": "yellow", "Buggy": "red"}


def render(audit: Audit) -> Mapping[str, str]:
    """Variant -> the document of its badge."""
    titles = {v.id: one_line(v.title) for v in audit.run.variants}
    return {
        variant: json.dumps(
            {
                "schemaVersion": 1,
                "label": titles.get(variant, variant),
                "message": verdict.verdict,
                "color": COLOURS[verdict.verdict],
            }
        )
        + "\n"
        for variant, verdict in audit.verdicts.items()
    }
