"""Every ratio stands where it belongs beside its threshold, and the page's filter and links name what is there."""

from __future__ import annotations

import re

import pytest

from reports.judge.judgement import judge
from reports.model import Claim
from reports.render import html
from reports.render.strip import LEFT, WIDTH, strip
from tests.reports.runs import FORWARD, diagnosis, run
from tests.reports.runs import claim as recorded


def claim(ratio: float | None, threshold: float | None, outcome: str = "pass") -> Claim:
    return Claim("c", "lora", "forward", "forward.gradients", "paper", outcome, ratio, threshold)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ratio", "threshold", "at"),
    [
        (30.0, 30.0, 0.5),
        (0.3, 30.0, 0.25),
        (3e5, 30.0, 1.0),
        (3e9, 30.0, 1.0),
        (float("inf"), 30.0, 1.0),
        (float("nan"), 30.0, 1.0),
        (0.0, 30.0, 0.0),
        (0.0, 0.0, 0.0),
        (1.0, 0.0, 1.0),
    ],
)
def test_where_a_ratio_stands(ratio: float, threshold: float, at: float) -> None:
    """The threshold is in the middle, four decades to either side, and what lies beyond stands at the edge."""
    drawn = strip([claim(ratio, threshold)])
    assert drawn is not None
    assert drawn.points[0].x == pytest.approx(LEFT + at * WIDTH, abs=0.1)


def test_nothing_measured_is_no_strip() -> None:
    assert strip([claim(None, None), claim(None, 30.0)]) is None


def test_the_page_draws_links_and_filters() -> None:
    """A point for each ratio, an anchor for each difference, and a rule and a box for each method and tag."""
    made = judge(
        run(
            recorded(FORWARD, "delora", outcome="fail", ratio=90.0, threshold=30.0, diagnosis=diagnosis()),
            recorded("save_load.round_trip", "lora", outcome="unverified", reason="not synced"),
            recorded("init.identity", "lora", ratio=1.0, threshold=30.0),
        )
    )
    assert len(made.findings) == 2
    page = html.render(made)
    assert page.count("<circle") == sum(
        c.ratio is not None and c.threshold is not None for c in made.run.claims
    )
    for finding in made.findings:
        assert f'id="variant-{finding.variant}-variant-{finding.id}"' in page
        assert f'href="#variant-{finding.variant}-variant-{finding.id}"' in page
    boxes = re.findall(r'<input type="checkbox" id="show-([\w-]+)" checked>', page)
    assert set(boxes) == set(re.findall(r"#show-([\w-]+):not\(:checked\)", page))
    assert {f"variant-{f.tag}" for f in made.findings} <= set(boxes)
