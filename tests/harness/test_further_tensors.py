"""A tensor more than the reference has: a mistake where nobody says so, an extension where the docstring names it."""

from __future__ import annotations

import pytest

from tests.subjects import broken
from tests.subjects.judged import QUICK, audit
from tests.subjects.wrapped import Library


@pytest.mark.parametrize(
    ("says", "tag"),
    [
        ("", "BUG"),
        ("A bias is trained along.", "BUG"),  # names nothing: the base has a bias, too
        ("``lora_bias`` (out,) is trained with A and B and added to the update.", "OK-doc"),
    ],
)
def test_it_counts_where_the_docstring_names_it(says: str, tag: str) -> None:
    stating = type("Stating", (Library,), {"__doc__": says})  # type: ignore[misc]
    subject = stating({"lora": broken.ExtraBias})
    (found,) = audit(subject, ["lora"], checks=lambda c: c.id == "shapes.canonical", profile=QUICK).findings
    assert (found.tag, found.title) == (tag, "the adapter has what the reference's has not: lora_bias")
