"""The connection to a subject's process: made again after it has died, and what is watched there around each claim."""

from __future__ import annotations

from typing import Any

import psutil

from harness.compare.isolation import SubjectDied
from harness.subjects.remote.messages import Parcel, raise_for
from harness.subjects.remote.process import TORCH, Command, NoWorker, Worker, start

ATTRIBUTES = ("name", "version", "variants", "layers", "dtypes", "inputs")


class Elsewhere:
    """State of the subject's process, watched around each claim where it is."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def mark(self) -> None:
        """A claim begins: the next request says so."""
        worker = self.connection.worker
        worker.marked = False
        if not worker.dead:
            worker.processor.take(worker.process.pid)

    def computed(self) -> float:
        """Seconds of processor time that the process has used; 0 of one that is gone."""
        try:
            used = psutil.Process(self.connection.worker.process.pid).cpu_times()
        except psutil.Error:
            return 0.0
        return float(used.user + used.system)

    def restore(self) -> list[tuple[str, Any, Any]]:
        """A claim ends: (what, before, after) of the state that was left changed, which is put back."""
        if self.connection.worker.dead or not self.connection.worker.marked:
            return []
        try:
            return [(what, was, now) for what, was, now in self.connection.plain("restore")]
        except SubjectDied:
            return []


class Connection:
    """The subject's process, started again after it has died."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self.worker = start(command)

    def alive(self) -> Worker:
        """A living process. Raises SubjectDied where none can be had any more."""
        if self.worker.dead:
            try:
                self.worker = start(self.command)
            except NoWorker as error:
                raise SubjectDied(str(error)) from error
        return self.worker

    def plain(self, op: str, **content: Any) -> Any:
        """A request that concerns no layer."""
        worker = self.alive()
        reply, _ = worker.ask({"op": op, **content}, Parcel(TORCH))
        raise_for(reply)
        return reply.get("result")


def identity_of(value: Any) -> Any:
    """A subject's word about itself; what is of a wrong type stays so, for who checks it."""
    if isinstance(value, dict):
        return frozenset(value["set"]) if "set" in value else value.get("odd")
    return value
