"""A remote subject is an ``Implementation``: every method asks the worker, every answer is a stand-in."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from harness.subjects.remote.connection import ATTRIBUTES, Connection, Elsewhere, identity_of
from harness.subjects.remote.mirror import LINK, RemoteAdapted, World
from harness.subjects.remote.process import Command, NoWorker
from oracles.implementation import Adapted, Implementation


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


def remote_subject(command: Command) -> Implementation:
    """The subject that ``command`` serves. Raises NoWorker with one sentence."""
    connection = Connection(command)
    greeting = connection.worker.greeting
    if greeting.get("kind") == "array":
        from harness.subjects.remote.remote_arrays import remote_arrays

        return remote_arrays(connection)
    offered = [m for m in greeting.get("methods", ()) if callable(getattr(Implementation, str(m), None))]
    methods: dict[str, Any] = {m: _forwarded(m) for m in offered if m != "adapt"}
    own = {a: identity_of(greeting[a]) for a in ATTRIBUTES if greeting.get(a) is not None}
    # What torch itself cannot compute there, no adapter can: it is not asked, and not laid at the library's door.
    without = frozenset(map(str, greeting.get("without_product", ())))
    if without:
        own["dtypes"] = own.get("dtypes", Implementation.dtypes) - without
        methods["without_product"] = without
    if "quantisers" in greeting:
        methods["quantisers"] = frozenset(map(str, greeting["quantisers"]))
    extra = {"__doc__": greeting.get("doc") or None, "environment": greeting.get("environment", {})}
    kind = type(str(greeting.get("class"))[:100], (RemoteSubject,), {**methods, **own, **extra})
    subject: RemoteSubject = kind()
    subject.connection, subject.elsewhere = connection, Elsewhere(connection)
    return subject


__all__ = ["Command", "NoWorker", "Path", "RemoteSubject", "remote_subject"]
