"""A survey without libraries: audits made by hand, and a process that leaves one where a library's would."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from harness.survey import asking
from harness.survey.answers import AUDIT, Answer, Shelf
from harness.survey.questions import Question
from reports.judge.judgement import judge
from reports.model import Audit, Run
from reports.store import audit_json
from tests.reports.runs import claim, diagnosis, no_mode, run

KEY = "this audit"


def broken() -> Run:
    """One bug in LoRA's merging, one in DeLoRA's forward, a mode missing."""
    return run(
        claim("init.identity"),
        claim("training.sgd", outcome="fail"),
        claim(
            "dropout.active", outcome="not_applicable", cause="not_offered", detail="merge", reason="no merge"
        ),
        no_mode(),
        claim("forward.random_parameters", "delora", outcome="fail", diagnosis=diagnosis()),
    )


def question_of(folder: Path, library: str = "fake", profile: str = "quick", text: str = "") -> Question:
    """A question about a subject in a file of its own."""
    file = folder / f"{library}.py"
    if not file.exists() or text:
        file.write_text(text or f"# {library}", encoding="utf-8")
    return Question(library, profile, file, None)


def kept(
    shelf: Shelf, question: Question, made: Run | None = None, key: str = KEY, failure: str = ""
) -> Answer:
    """An answer on the shelf, with its audit."""
    place = shelf.place(question, key)
    if not failure:
        audit_json.write(judge(made or broken()), place / AUDIT)
    answer = Answer(question.library, question.profile, question.subject_key, key, "2026-11-27", 42.0,
                    question.command, failure)  # fmt: skip
    shelf.put(answer, question)
    return answer


def audit_of(made: Run) -> Audit:
    """A run, judged."""
    return judge(made)


def process(code: str) -> Callable[[Question, asking.Ways, Path], list[str]]:
    """Instead of the command that audits: Python code that finds the folder in ``sys.argv[1]``, the library in [2]."""

    def command(question: Question, ways: asking.Ways, folder: Path) -> list[str]:
        return [sys.executable, "-S", "-c", code, str(folder), question.library]

    return command
