"""One library asked, in a process of its own: an answer, or one sentence that says why there is none."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import filelock

from harness.survey.answers import AUDIT, Answer, Shelf
from harness.survey.questions import ROOT, Question
from reports.errors import ReportsError
from reports.store import audit_json

Tell = Callable[[str, int], None]  # library, percent of its claims
POLL = 2.0  # seconds
LONGEST = 400  # characters of a reason


@dataclass(frozen=True)
class Ways:
    """How to ask. ``limit``: wall-clock seconds for one library; ``offline``: only environments that are there;
    ``stop``: set, it ends what is running."""

    limit: float
    offline: bool = False
    stop: threading.Event = field(default_factory=threading.Event)


class Stopped(Exception):
    """The survey was interrupted; nothing is kept of a library that was being asked."""


def command(question: Question, ways: Ways, folder: Path) -> list[str]:
    """The process that asks; it writes its audit into ``folder``."""
    offline = ["--offline"] if ways.offline else []
    return [
        *(sys.executable, "-u", "-m", "pytest", "harness/", "-n", "0", "-q", "--tb=no", "-r", "N"),
        *("-p", "no:cacheprovider", "--subject", question.library, "--audit-profile", question.profile),
        *(f"--audit-json={folder / AUDIT}", *question.narrowed, *offline),
    ]


def ask(question: Question, audit_key: str, shelf: Shelf, ways: Ways, tell: Tell) -> Answer:
    """The kept answer to a question, or the one that asking now gives; it is kept."""
    place = shelf.place(question, audit_key)
    place.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{place}.lock"):  # two surveys at once ask each library once
        return shelf.exact(question, audit_key) or _asked(question, audit_key, shelf, ways, tell)


def _asked(question: Question, audit_key: str, shelf: Shelf, ways: Ways, tell: Tell) -> Answer:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="survey-") as folder:
        failure = run(question, ways, Path(folder), tell)
        if not failure:
            shutil.copyfile(Path(folder) / AUDIT, shelf.place(question, audit_key) / AUDIT)
    if ways.stop.is_set():
        raise Stopped
    answer = Answer(
        *(question.library, question.profile, question.subject_key, audit_key),
        date=datetime.now(UTC).isoformat(timespec="minutes"),
        seconds=round(time.monotonic() - started, 1),
        command=question.command,
        failure=failure,
    )
    shelf.put(answer, question)
    return answer


def run(question: Question, ways: Ways, folder: Path, tell: Tell) -> str:
    """Run the audit of a library; empty where a complete audit is there, else why not, in one sentence."""
    out, err, progress = folder / "out", folder / "err", Progress(folder / AUDIT)
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            command(question, ways, folder), cwd=ROOT, env=_environment(), stdin=subprocess.DEVNULL,
            stdout=stdout, stderr=stderr, start_new_session=True,
        )  # fmt: skip
        try:
            ended = _wait(process, ways, lambda: tell(question.library, progress.now()))
        finally:
            _end(process)
    if not ended:
        return f"not done within {ways.limit / 60:.0f} minutes: {progress.now()} % of its claims were asked"
    return _missing(folder / AUDIT, process.returncode, out, err)


def _wait(process: subprocess.Popen[bytes], ways: Ways, tick: Callable[[], None]) -> bool:
    """Whether the process ended of itself within its limit."""
    deadline = time.monotonic() + ways.limit
    while time.monotonic() < deadline and not ways.stop.is_set():
        try:
            process.wait(POLL)
        except subprocess.TimeoutExpired:
            tick()
        else:
            return True
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and the library's own worker with it."""
    if process.poll() is None:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()


def _environment() -> dict[str, str]:
    """One thread for each library: several are asked beside each other, and sums keep their order."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


def _missing(audit: Path, code: int, out: Path, err: Path) -> str:
    """Why there is no complete audit; empty where there is one."""
    try:
        audit_json.read(audit)
    except ReportsError as error:
        said = reason([*_lines(out), *_lines(err)]) or str(error)
        return f"the run ended with exit code {code} before it was complete: {said}"
    return ""


def reason(lines: Sequence[str]) -> str:
    """The last line that tells an error, else the last one, without the machine's folders."""
    told = [line for line in lines if re.match(r"(ERROR:|INTERNALERROR>|E  )|\w*Error\b", line)]
    last = (told or [line for line in lines if line.strip()] or [""])[-1]
    return anonymous(" ".join(last.removeprefix("ERROR:").split()))[:LONGEST]


def anonymous(words: str) -> str:
    """``words`` without the folders of this machine: what lies below site-packages, the checkout or a home is kept."""
    words = re.sub(r"(?<![\w.])/\S*?/site-packages/", "", words)
    for folder in (str(ROOT), str(Path.home()), tempfile.gettempdir()):
        words = words.replace(f"{folder}/", "").replace(folder, "…")
    return words


def _lines(file: Path) -> list[str]:
    return file.read_bytes()[-65536:].decode(errors="replace").splitlines()


@dataclass
class Progress:
    """How far a run is, by the partial audit that it leaves every few claims."""

    audit: Path
    percent: int = 0
    _read: int = 0  # the file's time when it was last read

    def now(self) -> int:
        """The percentage of the claims that have been concluded."""
        try:
            if (changed := self.audit.stat().st_mtime_ns) != self._read:
                document = json.loads(self.audit.read_text(encoding="utf-8"))
                asked, missing = len(document["claims"]), len(document["generator"]["context"]["missing"])
                self.percent, self._read = 100 * asked // max(asked + missing, 1), changed
        except (OSError, ValueError, KeyError):
            pass  # not there yet
        return self.percent
