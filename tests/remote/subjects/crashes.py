"""Subjects that no process survives, and some that attack the connection: plain LoRA but for one thing."""

from __future__ import annotations

import ctypes
import json
import os
import struct
import sys
import time

import torch
from torch import nn

from oracles.implementation import Adapted, Implementation, Slot


class Layer(nn.Module):
    """y = base(x) + (α/r) x Aᵀ Bᵀ."""

    def __init__(self, base, spec, misbehave):
        super().__init__()
        self.base, self.scale, self.misbehave = base.requires_grad_(False), spec.alpha / spec.rank, misbehave
        bound, like = base.in_features**-0.5, {"dtype": base.weight.dtype}
        self.A = nn.Parameter(torch.empty(spec.rank, base.in_features, **like).uniform_(-bound, bound))
        self.B = nn.Parameter(torch.zeros(base.out_features, spec.rank, **like))
        self.train(base.training)

    def forward(self, x):
        self.misbehave()
        return self.base(x) + self.scale * (x @ self.A.T @ self.B.T)


class Behaves(Implementation):
    """What the others are but for one thing; its ``source`` can be told to misbehave outside of any claim."""

    name = "crashes"
    version = "1"
    variants = frozenset({"lora"})

    def misbehave(self):
        pass

    def adapt(self, base, spec):
        layer = Layer(base, spec, self.misbehave)
        return Adapted(layer, {"A": Slot(layer.A), "B": Slot(layer.B)})


class Segfaults(Behaves):
    def misbehave(self):
        ctypes.string_at(0)


class Exits(Behaves):
    def misbehave(self):
        print("bye", file=sys.stderr, flush=True)
        os._exit(7)


class Hangs(Behaves):
    def misbehave(self):
        time.sleep(1000)


class Takes100GB(Behaves):
    def misbehave(self):
        bytearray(100 << 30)


class PrintsGarbage(Behaves):
    """Not hostile, only loud: on both streams, through Python and past it."""

    def misbehave(self):
        print("\x00{]garbage" * 10)
        sys.stdout.flush()
        os.write(1, b"AUDT\xff\xff\xff\xff")
        os.write(2, b"more garbage")


def connection():
    """The descriptor that the worker answers on."""
    return int(sys.argv[2])


class HalfAMessage(Behaves):
    def misbehave(self):
        os.write(connection(), struct.pack("<4sIQ", b"AUDT", 1000, 0) + b'{"status":')
        os._exit(0)


class NoMessage(Behaves):
    def misbehave(self):
        os.write(connection(), b"HTTP/1.1 400 Bad Request\r\n\r\n")


class TooLarge(Behaves):
    def misbehave(self):
        os.write(connection(), struct.pack("<4sIQ", b"AUDT", 10, 1 << 62))


def reply(header, payload=b""):
    """Answer out of turn, with a message of our own making."""
    text = json.dumps(header).encode()
    os.write(connection(), struct.pack("<4sIQ", b"AUDT", len(text), len(payload)) + text + payload)


class Nonsense(Behaves):
    """A reply of the right form that speaks of tensors that are not there."""

    def misbehave(self):
        reply({"status": "ok", "result": {"value": {"tensor": 5}, "flows": [True]}})


class OutOfBounds(Behaves):
    """A tensor that claims more memory than it brings."""

    def misbehave(self):
        told = {"storage": 1, "dtype": "float32", "shape": [1 << 20], "stride": [1], "offset": 0,
                "requires_grad": False, "kind": "tensor"}  # fmt: skip
        reply({"status": "ok", "result": None, "state": {"tensors": [[99, told]]}})


class NoStatus(Behaves):
    def misbehave(self):
        reply({})


class Pickles(Behaves):
    """What would be a pickle is text like any other."""

    def misbehave(self):
        reply(
            {
                "status": "failed",
                "error": {"type": "cos\nsystem", "text": "(S'true'\ntR.", "bases": ["object"]},
            }
        )
