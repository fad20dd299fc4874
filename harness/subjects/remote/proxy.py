"""A remote subject is an ``Implementation``: every method asks the worker, every answer is a stand-in."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from harness.compare.isolation import SubjectDied
from harness.subjects.remote.messages import Parcel, raise_for
from harness.subjects.remote.mirror import LINK, RemoteAdapted, World
from harness.subjects.remote.process import TORCH, Command, NoWorker, Worker, start
from oracles.implementation import Adapted, Implementation

ATTRIBUTES = ("name", "version", "variants", "layers", "dtypes", "inputs")


class Elsewhere:
    """State of the subject's process, watched around each claim where it is."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def mark(self) -> None:
        """A claim begins: the next request says so."""
        self.connection.worker.marked = False

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


class RemoteSubject(Implementation):
    """The subject in its own environment; what it offers is what the class there overrides."""

    connection: Connection
    elsewhere: Elsewhere

    def adapt(self, base: nn.Linear, spec: Any) -> Adapted:
        """Asked of the worker."""
        found: Adapted = self.invoke("adapt", base, spec)
        return found

    def invoke(self, method: str, *arguments: Any) -> Any:
        """A method of the subject in the world of its first argument."""
        return self._world(arguments[0] if arguments else None).invoke(method, *arguments)

    def _world(self, first: Any) -> World:
        if isinstance(first, RemoteAdapted):
            return first.world
        if isinstance(first, nn.Module):
            link = first.__dict__.get(LINK)
            if link is not None and not link.world.worker.dead:
                world: World = link.world
                return world
        return World(self.connection.alive())


def _forwarded(method: str) -> Callable[..., Any]:
    original = getattr(Implementation, method)

    @functools.wraps(original)
    def forwarder(self: RemoteSubject, *arguments: Any, **named: Any) -> Any:
        names = original.__code__.co_varnames[1 : original.__code__.co_argcount]
        given = dict(zip(names, arguments, strict=False)) | named
        return self.invoke(method, *given.values())

    return forwarder


def identity_of(value: Any) -> Any:
    """A subject's word about itself; what is of a wrong type stays so, for who checks it."""
    if isinstance(value, dict):
        return frozenset(value["set"]) if "set" in value else value.get("odd")
    return value


def remote_subject(command: Command) -> Implementation:
    """The subject that ``command`` serves. Raises NoWorker with one sentence."""
    connection = Connection(command)
    greeting = connection.worker.greeting
    if greeting.get("kind") == "array":
        from harness.subjects.remote.arrays import remote_arrays

        return remote_arrays(connection)
    offered = [m for m in greeting.get("methods", ()) if callable(getattr(Implementation, str(m), None))]
    methods: dict[str, Any] = {m: _forwarded(m) for m in offered if m != "adapt"}
    own = {a: identity_of(greeting[a]) for a in ATTRIBUTES if greeting.get(a) is not None}
    extra = {"__doc__": greeting.get("doc") or None, "environment": greeting.get("environment", {})}
    kind = type(str(greeting.get("class"))[:100], (RemoteSubject,), {**methods, **own, **extra})
    subject: RemoteSubject = kind()
    subject.connection, subject.elsewhere = connection, Elsewhere(connection)
    return subject


__all__ = ["Command", "NoWorker", "Path", "RemoteSubject", "remote_subject"]
