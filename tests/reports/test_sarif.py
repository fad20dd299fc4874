"""SARIF that a code host takes: findings on lines of the subject's repository, known again when lines move."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from reports.judge.judgement import judge
from reports.model import Audit
from reports.render import sarif
from reports.version import VERSION
from tests.reports.runs import FORWARD, claim, diagnosis, run

TEXT = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string", "minLength": 1}}}
REGION = {
    "type": "object", "required": ["startLine"], "additionalProperties": False,
    "properties": {"startLine": {"type": "integer", "minimum": 1}, "endLine": {"type": "integer", "minimum": 1}},
}  # fmt: skip
PLACE = {
    "type": "object",
    "required": ["physicalLocation"],
    "properties": {
        "physicalLocation": {
            "type": "object",
            "required": ["artifactLocation", "region"],
            "properties": {
                "artifactLocation": {
                    "type": "object",
                    "required": ["uri"],
                    "properties": {"uri": {"type": "string", "pattern": r"^[!-~]+$"}},
                },
                "region": REGION,
            },
        }
    },
}
# The parts of SARIF 2.1.0 that are written, as its schema and GitHub's upload want them, in our own words.
WRITTEN: dict[str, Any] = {
    "type": "object",
    "required": ["version", "runs", "$schema"],
    "properties": {
        "version": {"const": "2.1.0"},
        "runs": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["tool", "results"],
                "properties": {
                    "tool": {
                        "type": "object",
                        "required": ["driver"],
                        "properties": {
                            "driver": {
                                "type": "object",
                                "required": ["name", "version", "semanticVersion", "informationUri", "rules"],
                                "properties": {
                                    "informationUri": {"type": "string", "pattern": r"^[a-z]+:"},
                                    "rules": {
                                        "type": "array",
                                        "uniqueItems": True,
                                        "items": {
                                            "type": "object",
                                            "required": ["id", "name", "shortDescription", "fullDescription", "help"],
                                            "properties": {
                                                "shortDescription": TEXT,
                                                "fullDescription": TEXT,
                                                "help": {**TEXT, "required": ["text", "markdown"]},
                                            },
                                        },
                                    },
                                },
                            }
                        },
                    },
                    "results": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["ruleId", "ruleIndex", "message", "locations", "partialFingerprints"],
                            "properties": {
                                "level": {"enum": ["error", "warning", "note", "none"]},
                                "kind": {"enum": ["fail", "informational"]},
                                "message": TEXT,
                                "locations": {"type": "array", "minItems": 1, "items": PLACE},
                                "relatedLocations": {"type": "array", "uniqueItems": True, "items": PLACE},
                                "partialFingerprints": {
                                    "type": "object", "minProperties": 1,
                                    "additionalProperties": {"type": "string"},
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}  # fmt: skip
LIBRARY = "class Layer:\n    def forward(self, x):\n        return x\n"
SUBJECT = "import library\n\n\nclass Mine:\n    pass\n"


def audited(decided: str = "", **sources: tuple[Path, str]) -> Audit:
    """A failing audit of `subject.py:Mine` in the folder where we stand; its claim has a case and a diagnosis."""
    known = diagnosis("lora.x", remedy="divide by r", place=decided)
    made = run(claim(FORWARD, outcome="fail", diagnosis=known))
    places = {("lora", aspect): place for aspect, place in sources.items()}
    subject = dataclasses.replace(made.subject, ref="subject.py:Mine", sources=places)
    return judge(dataclasses.replace(made, subject=subject))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `ci/` of a git repository, in which the audit is started."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / ".git").mkdir()
    (folder / "ci").mkdir()
    (folder / "ci" / "subject.py").write_text(SUBJECT)
    (folder / "ci" / "library.py").write_text(LIBRARY)
    monkeypatch.chdir(folder / "ci")
    return folder / "ci"


def result(audit: Audit) -> dict[str, Any]:
    """The one result, in a log that is what it has to be."""
    log = json.loads(sarif.render(audit))
    jsonschema.validate(log, WRITTEN)
    (found,) = log["runs"][0]["results"]
    return found


def place(audit: Audit) -> tuple[str, int, int]:
    found = result(audit)["locations"][0]["physicalLocation"]
    return found["artifactLocation"]["uri"], found["region"]["startLine"], found["region"]["endLine"]


def test_paths_are_those_of_the_git_repository(root):
    audit = audited(forward=(root / "library.py", "Layer.forward"))
    assert place(audit) == ("ci/library.py", 2, 3)


@pytest.mark.parametrize(("decided", "line"), [("", 5), ("scale", 2)])
def test_it_is_on_the_lines_that_decide_the_mistake(root, decided, line):
    (root / "library.py").write_text(
        LIBRARY.replace("    def", "    def scale(self):\n        return 1\n\n    def")
    )
    both = {aspect: (root / "library.py", f"Layer.{aspect}") for aspect in ("scale", "forward")}
    assert place(audited(decided, **both))[1] == line


def test_a_finding_without_a_place_is_on_the_line_of_the_class(root):
    assert place(audited()) == ("ci/subject.py", 4, 4)


def test_a_library_outside_the_repository_is_on_the_line_of_the_class(root):
    elsewhere = root.parents[1] / "elsewhere.py"
    elsewhere.write_text(LIBRARY)
    audit = audited(forward=(elsewhere, "Layer.forward"))
    assert place(audit) == ("ci/subject.py", 4, 4)


def test_without_any_file_there_is_a_location_all_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert place(audited())[1:] == (1, 1)


def test_the_fingerprint_survives_lines_that_move_and_tells_defects_apart(root):
    source = (root / "library.py", "Layer.forward")
    before = result(audited(forward=source))
    (root / "library.py").write_text("# moved\n\n" + LIBRARY)
    after = result(audited(forward=source))
    assert before["locations"] != after["locations"]
    assert before["partialFingerprints"] == after["partialFingerprints"]
    other = judge(run(claim("init.identity", outcome="fail")))
    assert result(other)["partialFingerprints"] != before["partialFingerprints"]


def test_the_message_has_both_values_and_the_remedy(root):
    words = result(audited())["message"]["text"]
    assert "expected 0.731, got 1.034" in words
    assert "Remedy: divide by r." in words


def test_the_rule_says_what_goes_wrong_and_what_to_do(root):
    driver = json.loads(sarif.render(audited()))["runs"][0]["tool"]["driver"]
    assert (driver["name"], driver["version"]) == ("adapter-conformance", VERSION)
    (rule,) = driver["rules"]
    assert rule["name"] == "ForwardRandomParameters"
    assert "**What goes wrong.** Wrong outputs." in rule["help"]["markdown"]
    assert "**What to do.** Follow this quantity through the code." in rule["help"]["markdown"]
