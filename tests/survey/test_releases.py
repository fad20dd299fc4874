"""PEFT through its releases: which claim held from when to when, as the page tells it."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.survey import edges, strip_page
from harness.survey import peft_releases as releases
from harness.survey.answers import AUDIT, Answer, Shelf
from harness.survey.strips import Asked, Run, strips_of
from reports.judge.judgement import judge
from reports.store import audit_json
from tests.reports.runs import claim, run

MERGE, INIT, SCALE = "merge.weight[ia3-peft]", "init.identity[ia3-peft]", "scale.effective[ia3-peft]"
# release -> outcomes of the merge, the start and the scale
OUTCOMES = {
    "0.9.0": ("fail", "pass", "fail"),
    "0.10.0": ("error", "pass", "fail"),
    "0.11.1": ("pass", "not_applicable", "fail"),
    "0.12.0": ("pass", "pass", "fail"),
}


def asked(release: str) -> Asked:
    """A release whose three claims ended so."""
    merge, start, scale = OUTCOMES[release]
    made = run(
        claim("merge.weight", "ia3", outcome=merge, reason="the bias is lost" if merge == "error" else None),
        claim("init.identity", "ia3", outcome=start, cause="not_offered" if start != "pass" else None),
        claim("scale.effective", "ia3", outcome=scale),
    )
    answer = Answer(f"peft@{release}", "quick", "s", "a", "2026-11-27", 7.0, "pytest")
    return Asked(release, answer, judge(made))


ALL = [asked(release) for release in OUTCOMES]


def test_strips() -> None:
    """A change is one between holding and failing; a release that does not offer it is none."""
    found = {claim: s for s in strips_of(ALL) for claim in s.claims}
    merge, start, scale = (found[id_] for id_ in (MERGE, INIT, SCALE))
    assert (merge.states, start.states, scale.states) == ("xxoo", "oo-o", "xxxx")
    assert [merge.changes, start.changes, scale.changes] == [True, False, False]
    assert [start.holds, scale.fails] == [True, True]
    assert merge.runs == (Run("x", "0.9.0", "0.10.0"), Run("o", "0.11.1", "0.12.0"))
    assert merge.words == "fails 0.9.0 to 0.10.0, holds 0.11.1 to 0.12.0"
    assert merge.why == "the bias is lost"


def test_edges(tmp_path: Path) -> None:
    """Only what lies between is asked, once; what is not offered there is passed over."""
    listed = ["0.9.0", "0.10.0", "0.10.1", "0.10.2", "0.11.0", "0.11.1", "0.12.0"]
    answers = {"0.10.1": "fail", "0.10.2": "not_applicable", "0.11.0": "pass"}
    kept: dict[str, tuple[str, str]] = {}
    judge = lambda claim: answers.__getitem__  # noqa: E731
    assert edges.edges_of(strips_of(ALL), listed, judge, kept) == {MERGE: [("0.10.1", "0.11.0")]}
    edges.save(kept, tmp_path)
    again = edges.load(tmp_path)
    never = lambda claim: pytest.fail("it was asked again")  # noqa: E731
    assert edges.edges_of(strips_of(ALL), listed, never, again) == edges.known(strips_of(ALL), again)


def test_the_page(tmp_path: Path) -> None:
    """What changes is shown, what holds is counted, what never holds is listed."""
    strip_page.write(ALL, strips_of(ALL), {MERGE: [("0.10.0", "0.11.0")]}, [], tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert (
        "`merge.weight` | `xxoo` | fails 0.9.0 to 0.10.0, holds 0.11.1 to 0.12.0 | 0.10.0 / 0.11.0 | the bias is lost |"
        in text
    )
    assert "init.identity" not in text
    assert "- `scale.effective` `xxxx`" in text
    assert "    0.9.0 0.10.0 0.11.1 0.12.0\n" in text


def test_what_was_not_asked_is_said() -> None:
    assert strip_page.unasked(["0.8.2", "0.9.0", "0.12.0"]) == ["0.10", "0.11"]


def test_the_last_of_each_minor_release() -> None:
    listed = ["0.3.0", "0.4.0", "0.8.0", "0.8.2", "0.8.1", "0.10.0", "0.9.0"]
    assert releases.last_of_each_minor(listed) == ["0.4.0", "0.8.2", "0.9.0", "0.10.0"]


def test_what_was_answered_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is written from the shelf; of an interrupted run only the rest is asked."""
    shelf, release = Shelf(tmp_path / "shelf"), "0.12.0"
    one = releases.question(release, "quick")
    audit_json.write(asked(release).audit, shelf.place(one, "an older one") / AUDIT)
    shelf.put(Answer(one.library, "quick", one.subject_key, "an older one", "2026-11-27", 7.0, "pytest"), one)
    monkeypatch.setattr(releases, "ask", lambda *given: pytest.fail("it was asked"))
    page = tmp_path / "page.md"
    assert releases.main(["--releases", release, "--page", str(page)], shelf) == 0
    assert "scale.effective" in page.read_text()


@pytest.mark.parametrize("given", ["", "newest", "0.12.0+lora_bias"])
def test_what_is_no_release_is_refused(
    given: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert releases.main(["--releases", given or ",", "--page", str(tmp_path / "p")], Shelf(tmp_path)) == 4
    assert "expected releases such as" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()
