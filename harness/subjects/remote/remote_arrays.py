"""A library of arrays in its own environment: an ``ArrayImplementation`` whose methods ask the worker."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.subjects.arrays import from_arrays
from harness.subjects.remote.connection import ATTRIBUTES, Elsewhere, identity_of
from harness.subjects.remote.messages import BadMessage, Parcel, Raw, opaque, raise_for
from harness.subjects.remote.mirror import spec_told
from harness.subjects.remote.process import Worker
from harness.subjects.remote.worker import NumpyTensors
from oracles.array_implementation import ArrayImplementation
from oracles.implementation import AdapterSpec, Implementation

NUMPY = NumpyTensors()


@dataclass(frozen=True, eq=False)
class Handle:
    """What ``adapt`` returned there."""

    worker: Worker
    number: int

    def __post_init__(self) -> None:
        weakref.finalize(self, self.worker.released.append, self.number)


class RemoteArrays(ArrayImplementation):
    """The methods that every library of arrays has; the optional ones are added where the one there has them."""

    connection: Any

    def ask(self, method: str, *arguments: Any, keeps: bool = False) -> Any:
        """A method's answer, or with ``keeps`` a handle on it."""
        handles = [a for a in arguments if isinstance(a, Handle)]
        worker = handles[0].worker if handles else self.connection.alive()
        parcel = Parcel(NUMPY)
        coded = [_encoded(a, parcel) for a in arguments]
        header = {"op": "array", "method": method, "arguments": coded, "keeps": keeps}
        reply, raws = worker.ask(header, parcel)
        raise_for(reply)
        try:
            return Handle(worker, reply["result"]["adapted"]) if keeps else _decoded(reply["result"], raws)
        except (LookupError, TypeError, ValueError, BadMessage) as error:
            raise worker.distrust(error) from error

    def adapt(self, W: Any, b: Any, spec: AdapterSpec, seed: int) -> Any:
        """Asked of the worker."""
        return self.ask("adapt", W, b, spec, seed, keeps=True)

    def parameters(self, adapted: Any) -> Mapping[str, Any]:
        """Asked of the worker."""
        found: Mapping[str, Any] = self.ask("parameters", adapted)
        return found

    def trained(self, adapted: Any) -> frozenset[str]:
        """Asked of the worker."""
        return frozenset(self.ask("trained", adapted))

    def assign(self, adapted: Any, values: Mapping[str, Any]) -> None:
        """Asked of the worker."""
        self.ask("assign", adapted, dict(values))

    def forward(self, adapted: Any, x: Any, training: bool, seed: int) -> Any:
        """Asked of the worker."""
        return self.ask("forward", adapted, x, training, seed)

    def vjp(self, adapted: Any, x: Any, G: Any, training: bool, seed: int) -> Mapping[str, Any]:
        """Asked of the worker."""
        found: Mapping[str, Any] = self.ask("vjp", adapted, x, G, training, seed)
        return found


def _encoded(value: Any, parcel: Parcel) -> Any:
    if isinstance(value, np.ndarray):
        return {"tensor": parcel.add(value)}
    if isinstance(value, Handle):
        return {"adapted": value.number}
    if isinstance(value, AdapterSpec):
        return {"spec": spec_told(value)}
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, dict):
        return {"mapping": [[k, _encoded(v, parcel)] for k, v in value.items()]}
    return value


def _decoded(value: Any, raws: list[Raw]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return NUMPY.tensor(raws[content])
    if kind == "tuple":
        return tuple(_decoded(part, raws) for part in content)
    if kind == "mapping":
        return {str(k): _decoded(v, raws) for k, v in content}
    if kind == "spec":
        return AdapterSpec(**content)
    return Path(content) if kind == "path" else opaque(content)


def _optional(method: str) -> Callable[..., Any]:
    def asked(self: RemoteArrays, *arguments: Any) -> Any:
        return self.ask(method, *arguments, keeps=method == "load")

    return asked


def remote_arrays(connection: Any) -> Implementation:
    """The ``Implementation`` for the library of arrays that a connection leads to."""
    greeting = connection.worker.greeting
    required = set(vars(RemoteArrays))
    offered = [
        m for m in greeting.get("methods", ()) if hasattr(ArrayImplementation, str(m)) and m not in required
    ]
    own = {a: identity_of(greeting[a]) for a in ATTRIBUTES if greeting.get(a) is not None}
    methods = {m: _optional(m) for m in offered}
    kind = type(str(greeting.get("class"))[:100], (RemoteArrays,), {**methods, **own})
    arrays = kind()
    arrays.connection = connection
    more = {
        "__doc__": greeting.get("doc"),
        "environment": greeting.get("environment", {}),
        "connection": connection,
    }
    return from_arrays(arrays, {**more, "elsewhere": Elsewhere(connection)})
