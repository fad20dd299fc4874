"""A worker process: started, asked, and ended; whatever it does, it does to itself."""

from __future__ import annotations

import ctypes
import itertools
import os
import subprocess
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs
import torch

from harness.compare.isolation import CLAIM_SECONDS, SubjectDied
from harness.engine.asked_again import is_installed
from harness.subjects.remote import limits, worker
from harness.subjects.remote.messages import (
    PROTOCOL,
    BadMessage,
    Channel,
    Parcel,
    Raw,
    TorchTensors,
    exception_of,
    patience,
    reissue,
)
from harness.subjects.remote.processor import SharedProcessor

ROOT = Path(__file__).parents[3]
IMPLEMENTATION = ROOT / "oracles" / "implementation.py"
ARRAYS = ROOT / "oracles" / "array_implementation.py"
LOGS = platformdirs.user_log_path("adapter-conformance") if is_installed() else ROOT / "reports" / "out"
TORCH = TorchTensors()
STATUSES = ("ok", "unsupported", "failed")


class NoWorker(Exception):
    """A subject's process could not be had; the text is one sentence."""


@dataclass(frozen=True)
class Command:
    """What to run where: an interpreter, a subject's file, the attribute in it ("": the file's last class)."""

    python: Path
    subject: Path
    attribute: str
    limits: limits.Limits = field(default_factory=limits.default)

    @property
    def log(self) -> Path:
        """Where the process' stdout and stderr go; one file per subject and pytest worker."""
        beside = os.environ.get("PYTEST_XDIST_WORKER", "")
        return LOGS / f"subject-{self.subject.stem}{'-' if beside else ''}{beside}.log"


class Worker:
    """One living process that serves the subject."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self.numbers = itertools.count(1)
        self.released: deque[int] = deque()
        self.rng = b""
        self.marked = True  # whether it knows that a claim has begun
        self.dead: str | None = None
        self.processor = SharedProcessor()
        self.seconds = command.limits.start
        self._start()

    def _start(self) -> None:
        command = self.command
        command.log.parent.mkdir(parents=True, exist_ok=True)
        self.since = command.log.stat().st_size if command.log.exists() else 0
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        arguments = [theirs_in, theirs_out, IMPLEMENTATION, ARRAYS, command.subject, command.attribute]
        try:
            with command.log.open("ab") as log:
                self.process = subprocess.Popen(
                    [str(command.python), worker.__file__, *map(str, arguments)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(theirs_in, theirs_out),
                    start_new_session=True,  # the terminal's Ctrl-C is the audit's to handle
                    env={"PYTHONHASHSEED": "0", **os.environ},
                )
        except OSError as error:
            os.close(ours_in)
            os.close(ours_out)
            raise NoWorker(f"{command.python} cannot be run: {error.strerror}") from error
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        self.channel = Channel(ours_in, ours_out, patience(lambda: self.seconds))
        self.greeting = self._greet()
        self.seconds = 2 * CLAIM_SECONDS

    def _greet(self) -> dict[str, Any]:
        settings = {"protocol": PROTOCOL, "threads": torch.get_num_threads()}
        found = self._exchange({**settings, "address_space": self.command.limits.address_space}, [])[0]
        if found.get("protocol") != PROTOCOL:
            self.kill()
            raise NoWorker(
                f"the worker speaks protocol {found.get('protocol')!r}, the audit {PROTOCOL}: two versions"
            )
        if found.get("status") != "ok":
            self.kill()
            error = found.get("error") or {}
            raise NoWorker(f"{self.command.subject.name}: {told(error)}")
        result = found.get("result")
        if not isinstance(result, dict):
            self.kill()
            raise NoWorker("the worker's greeting says nothing of its subject")
        return result

    def _exchange(self, header: dict[str, Any], raws: list[Raw]) -> tuple[dict[str, Any], list[Raw]]:
        """One request and its reply. Whatever goes wrong here leaves the two sides out of step: the process ends."""
        if self.dead:
            raise SubjectDied(self.dead)
        try:
            self.channel.send(header, raws)
            found = self.channel.receive()
        except (BrokenPipeError, ConnectionError):
            found = None
        except BadMessage as error:
            self.kill(f"the subject's process sent no proper answer: {error}")
            raise SubjectDied(self.dead) from error
        except BaseException:
            self.kill()
            raise
        if found is None:
            self._bury()
            raise SubjectDied(self.dead)
        return found

    def ask(self, header: dict[str, Any], parcel: Parcel) -> tuple[dict[str, Any], list[Raw]]:
        """One request, with the generator and the modes of torch handed over there and back."""
        rng = generator_state()
        if rng != self.rng:
            self.rng = rng
            header["rng"] = parcel.add_bytes(rng)
        if set_modes := modes():
            header["modes"] = set_modes
        if not self.marked:
            header["mark"] = self.marked = True
        if self.released:
            header["release"] = [self.released.popleft() for _ in range(len(self.released))]
        header |= {"id": next(self.numbers), "seconds": self.command.limits.seconds}
        reply, raws = self._exchange(header, parcel.raws)
        if reply.get("status") not in STATUSES or reply.get("id") != header["id"]:
            raise self.distrust(
                ValueError(f"status {reply.get('status')!r}, in answer to {reply.get('id')!r}")
            )
        try:
            if "rng" in reply:
                self.rng = raws[reply["rng"]].data
                torch.set_rng_state(TORCH.tensor(raws[reply["rng"]]))
            reissue(reply.get("warnings", ()), reply.get("logs", ()))
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            raise self.distrust(error) from error
        return reply, raws

    def distrust(self, error: BaseException) -> SubjectDied:
        """End a process whose message cannot be made sense of; the exception to raise."""
        self.kill(
            f"the subject's process sent an answer that makes no sense: {type(error).__name__}: {str(error)[:200]}"
        )
        return SubjectDied(self.dead)

    def _bury(self) -> None:
        try:
            code = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            code = None
        words = limits.last_words(self.command.log, self.since)
        self.kill(f"the subject's process {limits.ending(code)}" + (f": {words}" if words else ""))

    def kill(self, why: str = "the subject's process was ended") -> None:
        """End the process; it is not asked again."""
        self.dead = self.dead or why
        self.processor.leave()
        if self.process.poll() is None:
            self.process.kill()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=5)
        for descriptor in (self.channel.read_fd, self.channel.write_fd) if hasattr(self, "channel") else ():
            if descriptor >= 0:
                os.close(descriptor)
        if hasattr(self, "channel"):
            self.channel.read_fd = self.channel.write_fd = -1

    def __del__(self) -> None:
        if getattr(self, "process", None) is not None:
            self.kill()


def told(error: dict[str, Any]) -> str:
    """Why a subject could not be loaded: the worker's own word, or what the file raised and where."""
    if error.get("type") == BadMessage.__name__:
        return str(error.get("text"))
    where = f" ({Path(str(error['file'])).name}, line {error.get('line')})" if error.get("file") else ""
    return f"running it raised {error.get('type')}: {error.get('text')}{where}"


def generator_state() -> bytes:
    """The state of torch's generator."""
    state = torch.get_rng_state()
    return ctypes.string_at(state.data_ptr(), state.numel())


def modes() -> dict[str, Any]:
    """Torch's modes at this moment, where they are not the usual ones."""
    found: dict[str, Any] = {}
    if not torch.is_grad_enabled():
        found["grad"] = False
    if torch.is_inference_mode_enabled():
        found["inference"] = True
    if torch.is_autocast_enabled("cpu"):
        found["autocast"] = str(torch.get_autocast_dtype("cpu")).removeprefix("torch.")
    return found


def start(command: Command) -> Worker:
    """A worker that has greeted. Raises NoWorker with one sentence."""
    if not command.python.is_file():
        raise NoWorker(f"there is no Python at {command.python}")
    try:
        return Worker(command)
    except SubjectDied as error:
        raise NoWorker(f"{command.subject.name} could not be loaded in {command.python}: {error}") from error


__all__ = ["Command", "NoWorker", "Worker", "exception_of", "start"]
