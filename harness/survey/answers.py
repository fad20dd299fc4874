"""What libraries have answered, kept in the user's cache folder, so that nothing is asked twice."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import platformdirs

from harness.cases.profiles import PROFILES
from harness.survey.questions import Question
from reports.errors import ReportsError
from reports.judge.judgement import judge
from reports.model import Audit
from reports.store import audit_json, text_files

RECORD, AUDIT = "answer.json", "audit.json"
ELSEWHERE = "elsewhere"  # an audit that was handed over: nothing tells which state of the audit asked


@dataclass(frozen=True)
class Answer:
    """What became of one question. ``failure``: why there is no audit, in one sentence; else empty.

    ``audit_key``: the state of the audit that asked; ``date``: day and time, ISO 8601; ``seconds``: 0 where not known.
    """

    library: str
    profile: str
    subject_key: str
    audit_key: str
    date: str
    seconds: float
    command: str
    failure: str = ""

    @property
    def day(self) -> str:
        return self.date[:10]


class Shelf:
    """A folder of answers, one folder for each question and state of the audit."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or platformdirs.user_cache_path("adapter-conformance") / "survey"

    def place(self, question: Question, audit_key: str) -> Path:
        """Where the answer to a question belongs."""
        return self.folder / question.library / f"{question.profile}-{question.subject_key}-{audit_key}"

    def put(self, answer: Answer, question: Question) -> None:
        """Keep an answer; its audit has been written into the same folder. Raises OSError."""
        text = json.dumps(dataclasses.asdict(answer), indent=1) + "\n"
        text_files.write_text(self.place(question, answer.audit_key) / RECORD, text)

    def take(self, file: Path, question: Question, audit: Audit) -> Answer:
        """Keep an audit that was made elsewhere. Raises OSError."""
        audit_json.write(audit, self.place(question, ELSEWHERE) / AUDIT)
        date = datetime.fromtimestamp(file.stat().st_mtime, UTC).isoformat(timespec="minutes")
        names = (question.library, question.profile, question.subject_key)
        answer = Answer(*names, ELSEWHERE, date, 0.0, question.command)
        self.put(answer, question)
        return answer

    def exact(self, question: Question, audit_key: str) -> Answer | None:
        """The answer to just this question, from the audit as it is; a failure is none, it is tried again."""
        answer = _record(self.place(question, audit_key))
        return answer if answer and not answer.failure else None

    def any_of(self, question: Question) -> list[Answer]:
        """Every answer of a library with the same subject file and environment, whoever asked and however closely."""
        places = sorted((self.folder / question.library).glob(f"*-{question.subject_key}-*"))
        return [answer for place in places if (answer := _record(place))]

    def best(self, question: Question, audit_key: str) -> Answer | None:
        """The answer to show: of the audit as it is, of the closest profile, the newest. A failure comes last."""
        profiles = list(PROFILES)

        def key(a: Answer) -> tuple[object, ...]:
            return not a.failure, a.audit_key == audit_key, profiles.index(a.profile), a.date

        return max((a for a in self.any_of(question) if a.profile in profiles), key=key, default=None)

    def audit(self, answer: Answer) -> Audit:
        """The audit behind an answer, judged by the reports as they are now. Raises ReportsError."""
        name = f"{answer.profile}-{answer.subject_key}-{answer.audit_key}"
        return judge(audit_json.read(self.folder / answer.library / name / AUDIT).run)


def _record(place: Path) -> Answer | None:
    """The answer in a folder; None where there is none that can be read: it will be asked again."""
    try:
        found = json.loads(text_files.read_text(place / RECORD, 2**20))
        answer = Answer(**found)
    except (OSError, ReportsError, ValueError, TypeError):
        return None
    return answer if answer.failure or (place / AUDIT).is_file() else None
