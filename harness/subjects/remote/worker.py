"""The other side: serves one subject to the audit, from the subject's own environment.

    python worker.py READ_FD WRITE_FD IMPLEMENTATION_PY ARRAY_IMPLEMENTATION_PY SUBJECT_PY ATTRIBUTE

This file and the two interface files are all that runs here. It needs Python 3.9, and torch 2.1 or, for a subject
that is an ``ArrayImplementation``, numpy. Nothing is ever unpickled on either side. What the messages hold is written
down in docs/worker.md and messages.schema.json.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import ctypes
import dataclasses
import functools
import gc
import importlib
import importlib.util
import inspect
import itertools
import json
import logging
import os
import pickle
import platform
import random
import struct
import sys
import threading
import time
import types
import warnings
from pathlib import Path
from typing import Any, NamedTuple

PROTOCOL = 1
MAGIC = b"AUDT"
FRAME = struct.Struct("<4sIQ")  # magic, bytes of the header, bytes of the payload
LARGEST_HEADER, LARGEST_PAYLOAD = 1 << 26, 1 << 34
# safetensors' name of a dtype -> (torch's and numpy's, bytes an entry)
DTYPES = {
    "F64": ("float64", 8),
    "I64": ("int64", 8),
    "F32": ("float32", 4),
    "I32": ("int32", 4),
    "BF16": ("bfloat16", 2),
    "F16": ("float16", 2),
    "I16": ("int16", 2),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "BOOL": ("bool", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
}
CODES = {name: code for code, (name, _) in DTYPES.items()}


# Messages

# What is encoded is a tree of this side's own making: it is not searched for circles.
as_json = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


class BadMessage(Exception):
    """What came over the descriptor is no message of this protocol; the text is one sentence."""


class Raw(NamedTuple):
    """A tensor on its way: safetensors' dtype and shape, its bytes, and what those two cannot say (or None)."""

    code: str
    shape: tuple
    data: bytes
    layout: Any = None


class Channel:
    """Messages over a pair of descriptors: a frame, a header in JSON, tensors as safetensors."""

    def __init__(self, read_fd, write_fd, wait=None):
        self.read_fd, self.write_fd, self.wait = read_fd, write_fd, wait
        self.ahead = b""  # read already, of the message at hand

    def send(self, header, raws):
        """One message. ``raws``: the tensors that the header speaks of by their place in this list."""
        layouts = {str(i): raw.layout for i, raw in enumerate(raws) if raw.layout}
        if layouts:
            header = dict(header, layouts=layouts)
        text, payload = as_json(header).encode(), pack(raws)
        self._write(FRAME.pack(MAGIC, len(text), len(payload)) + text + payload)

    def _write(self, data):
        view = memoryview(data)
        while len(view):
            view = view[os.write(self.write_fd, view[: 1 << 20]) :]

    def receive(self):
        """(header, raws) of the next message, or None where the other side has ended. Raises BadMessage."""
        frame = self._exactly(FRAME.size, "the frame of a message")
        if frame is None:
            return None
        magic, header_size, payload_size = FRAME.unpack(frame)
        if magic != MAGIC:
            raise BadMessage("expected a message, got the bytes %r" % bytes(frame[:8]))
        if header_size > LARGEST_HEADER or payload_size > LARGEST_PAYLOAD:
            raise BadMessage(
                "a message of %d + %d bytes is announced: too large" % (header_size, payload_size)
            )
        body = self._exactly(header_size + payload_size, "a message")
        if body is None:
            raise BadMessage("half a message: it ends after its frame")
        return decoded(body, header_size)

    def _exactly(self, size, what):
        chunks, got = [self.ahead[:size]], min(len(self.ahead), size)
        self.ahead = self.ahead[size:]
        while got < size:
            if self.wait is not None:
                self.wait(self.read_fd)
            chunk = os.read(self.read_fd, 1 << 16)  # what a pipe holds
            if not chunk:
                if got == 0 and what.startswith("the frame"):
                    return None
                raise BadMessage("half a message: %s ends after %d of %d bytes" % (what, got, size))
            chunks.append(chunk[: size - got])
            self.ahead = chunk[size - got :]
            got += len(chunk)
        return b"".join(chunks)


def decoded(body, header_size):
    """(header, raws) from a message's bytes. Raises BadMessage for what is no header or no safetensors."""
    try:
        header = json.loads(body[:header_size].decode())
        if not isinstance(header, dict):
            raise ValueError("the header is a %s, expected an object" % type(header).__name__)
        raws = unpack(memoryview(body)[header_size:], header.get("layouts", {}))
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        RecursionError,
        struct.error,
    ) as error:
        raise BadMessage("a message cannot be read: %s" % one_line(error)) from error
    return header, raws


def pack(raws):
    """Tensors as safetensors, named 0, 1, ...; empty where there are none."""
    if not raws:
        return b""
    order = sorted(
        range(len(raws)), key=lambda i: -DTYPES[raws[i].code][1]
    )  # aligned, as safetensors does it
    entries, chunks, start = [], [], 0
    for i in order:
        raw = raws[i]
        end = start + len(raw.data)
        entries.append('"%d":{"dtype":"%s","shape":%s,"data_offsets":[%d,%d]}'
                       % (i, raw.code, list(raw.shape), start, end))  # fmt: skip
        chunks.append(raw.data)
        start = end
    text = ("{%s}" % ",".join(entries)).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(chunks)


def unpack(payload, layouts):
    """The tensors of a payload in their order. Raises ValueError for what is no safetensors."""
    if not len(payload):
        return []
    (size,) = struct.unpack_from("<Q", payload)
    if size > len(payload) - 8:
        raise ValueError("the tensors' table is longer than the message")
    entries, data = json.loads(bytes(payload[8 : 8 + size]).decode()), payload[8 + size :]
    return [_unpacked(entries[str(i)], data, layouts.get(str(i))) for i in range(len(entries))]


def _unpacked(entry, data, layout):
    start, end = entry["data_offsets"]
    shape, entries = tuple(entry["shape"]), 1
    for length in shape:
        if not isinstance(length, int) or length < 0:
            raise ValueError("a tensor of shape %r" % (shape,))
        entries *= length
    if not 0 <= start <= end <= len(data) or end - start != entries * DTYPES[entry["dtype"]][1]:
        raise ValueError("a tensor of shape %r in the bytes %r to %r" % (shape, start, end))
    return Raw(entry["dtype"], shape, bytes(data[start:end]), layout)


def one_line(error):
    """An exception's own words in one bounded line; None where it has none that can be read."""
    try:
        return " ".join(str(error).split())[:2000]
    except Exception:
        return None


# Tensors of torch


class TorchTensors:
    """Tensors of torch to bytes and back, bit for bit, their strides kept."""

    def __init__(self):
        import torch

        self.torch = torch
        self.usual = (torch.nn.Parameter, torch.Tensor)
        self.names = {getattr(torch, name): name for name in CODES if hasattr(torch, name)}

    def is_plain(self, tensor):
        """Whether a tensor is entries in this machine's memory, and nothing else."""
        return (
            tensor.is_cpu
            and tensor.layout == self.torch.strided
            and (type(tensor) in self.usual or type(tensor.data) is self.torch.Tensor)
        )

    def code(self, dtype):
        """safetensors' name of a dtype. Raises ValueError for one that has none."""
        name = str(dtype).replace("torch.", "")
        if name not in CODES:
            raise ValueError("a tensor of dtype %s cannot be sent" % name)
        return CODES[name]

    def dtype(self, code):
        """torch's dtype for safetensors' name of it."""
        return getattr(self.torch, DTYPES[code][0])

    def raw(self, tensor):
        """What is sent of a tensor. Raises ValueError for sparse, quantised and other tensors without plain entries."""
        tensor, layout = tensor.detach(), None
        if tensor.device.type == "meta":
            layout = {"shape": list(tensor.shape), "stride": list(tensor.stride()), "device": "meta"}
            return Raw(self.code(tensor.dtype), (0,), b"", layout)
        if tensor.layout != self.torch.strided or tensor.is_quantized:
            raise ValueError("a tensor of layout %s cannot be sent" % tensor.layout)
        if not tensor.is_cpu or tensor.is_neg() or tensor.is_conj():
            tensor = tensor.resolve_neg().resolve_conj().cpu()
        if tensor.is_complex():
            tensor, layout = self.torch.view_as_real(tensor).contiguous(), {"complex": True}
        if not tensor.is_contiguous():
            layout = {"shape": list(tensor.shape), "stride": list(tensor.stride())}
            tensor = tensor.as_strided((span(tensor.shape, tensor.stride()),), (1,))
        data = (
            ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size())
            if tensor.numel()
            else b""
        )
        return Raw(self.code(tensor.dtype), tuple(tensor.shape), data, layout)

    def tensor(self, raw):
        """The tensor that was sent, in memory of its own (as torch aligns it: sums must not depend on that)."""
        layout, dtype = raw.layout or {}, self.dtype(raw.code)
        if layout.get("device") == "meta":
            return self.torch.empty_strided(layout["shape"], layout["stride"], dtype=dtype, device="meta")
        flat = self.torch.empty(len(raw.data) // DTYPES[raw.code][1], dtype=dtype)
        if len(raw.data):
            ctypes.memmove(flat.data_ptr(), raw.data, len(raw.data))
        if layout.get("complex"):
            return self.torch.view_as_complex(flat.reshape(raw.shape))
        if "stride" in layout:
            if span(layout["shape"], layout["stride"]) > flat.numel() or min(layout["stride"]) < 0:
                raise ValueError("a tensor of strides %r in %d entries" % (layout["stride"], flat.numel()))
            return flat.as_strided(layout["shape"], layout["stride"])
        return flat.reshape(raw.shape)

    def storage_bytes(self, tensor):
        """The bytes of all the memory that a tensor is a view of."""
        storage = tensor.untyped_storage()
        return ctypes.string_at(storage.data_ptr(), storage.nbytes()) if storage.nbytes() else b""


def span(shape, stride):
    """How many entries lie between the first and the last of a strided tensor, both included; 0 if it is empty."""
    if 0 in tuple(shape):
        return 0
    return 1 + sum((n - 1) * s for n, s in zip(shape, stride))


class NumpyTensors:
    """Arrays of numpy to bytes and back; bfloat16 where ml_dtypes is installed."""

    def __init__(self):
        import numpy

        self.numpy = numpy

    def dtype(self, code):
        """numpy's dtype for safetensors' name of it. Raises ValueError where it has none."""
        name = DTYPES[code][0]
        try:
            return self.numpy.dtype(name)
        except TypeError:
            pass
        try:
            import ml_dtypes

            return self.numpy.dtype(getattr(ml_dtypes, name))
        except (ImportError, AttributeError):
            raise ValueError("numpy has no %s here" % name) from None

    def raw(self, array):
        """What is sent of an array. Raises ValueError for a dtype that cannot be sent."""
        array = self.numpy.asarray(array)
        if array.dtype.name not in CODES:
            raise ValueError("an array of dtype %s cannot be sent" % array.dtype)
        return Raw(CODES[array.dtype.name], array.shape, array.tobytes())

    def tensor(self, raw):
        """The array that was sent, writable."""
        return self.numpy.frombuffer(bytearray(raw.data), dtype=self.dtype(raw.code)).reshape(raw.shape)


class Parcel:
    """The tensors of a message that is being written."""

    def __init__(self, tensors):
        self.tensors, self.raws = tensors, []

    def add(self, tensor):
        """The place at which the message carries ``tensor``."""
        return self.add_raw(self.tensors.raw(tensor))

    def add_raw(self, raw):
        """The place of a tensor whose bytes are had already."""
        self.raws.append(raw)
        return len(self.raws) - 1

    def add_bytes(self, data):
        """The place of some memory."""
        return self.add_raw(Raw("U8", (len(data),), data))


# What the audit sees of a module: the tree below it, its tensors, the memory these live in


GEOMETRY = ("storage", "dtype", "shape", "stride", "offset", "requires_grad", "kind")


class World:
    """All that is reachable from one base or model, by number, as the audit last saw it."""

    numbers = itertools.count(1)

    def __init__(self, tensors):
        self.tensors = tensors
        self.roots, self.loose, self.adapted = [], [], {}
        self.objects, self.number_of = {}, {}
        self.told_modules, self.told_tensors, self.told_storages, self.told_slots = {}, {}, {}, {}
        self.storage_numbers, self.classes, self.live = {}, {}, {}

    def number(self, thing, number=None):
        """The number of a module or a tensor, given at first sight."""
        found = self.number_of.get(id(thing))
        if found is None:
            found = next(self.numbers) if number is None else number
            self.number_of[id(thing)] = found
            self.objects[found] = thing
        return found

    def add_root(self, module):
        """Watch a module, and tell its number."""
        if not any(root is module for root in self.roots):
            self.roots.append(module)
        return self.number(module)

    def survey(self):
        """({number: module}, {number: tensor}) of all that is reachable."""
        modules, tensors, stack = {}, {}, list(reversed(self.roots))
        while stack:
            module = stack.pop()
            number = self.number(module)
            if number in modules:
                continue
            modules[number] = module
            for table in (module._parameters, module._buffers):
                for tensor in table.values():
                    if tensor is not None:
                        tensors[self.number(tensor)] = tensor
            stack.extend(child for child in reversed(list(module._modules.values())) if child is not None)
        for tensor in self.loose:
            tensors[self.number(tensor)] = tensor
        return modules, tensors

    def changes(self, parcel):
        """What is new since the audit was last told: modules, tensors, memory, the geometry of slots."""
        modules, self.live = self.survey()
        said = {
            "modules": [[n, described(modules[n], told)] for n, told in self._modules(modules)],
            "tensors": [[n, dict(zip(GEOMETRY, told))] for n, told in self._tensors()],
            "slots": [[n, name, d] for n, name, d in self._slots()],
        }
        said["storages"] = self._storages(parcel)
        return {key: value for key, value in said.items() if value}

    def settle(self):
        """Take all that is there now for known to the audit."""
        modules, self.live = self.survey()
        for each in (self._modules(modules), self._tensors()):
            collections.deque(each, maxlen=0)
        self._storages(Parcel(self.tensors))

    def _modules(self, modules):
        known, number_of, hooked = {}, self.number_of, hooks_everywhere()
        for number, module in modules.items():
            plain, trains = self.is_usual(module, known)
            told = (
                bool(module.training),
                plain and not hooked,
                trains,
                tuple([(name, c if c is None else number_of[id(c)]) for name, c in module._modules.items()]),
                tuple([(name, t if t is None else number_of[id(t)]) for name, t in module._parameters.items()]),
                tuple([(name, t if t is None else number_of[id(t)], name not in module._non_persistent_buffers_set)
                       for name, t in module._buffers.items()]),
                type(module),
            )  # fmt: skip
            if self.told_modules.get(number) != told:
                self.told_modules[number] = told
                yield number, told

    def is_usual(self, module, known):
        """Whether a module and all below it are just what their classes make of their tensors; likewise ``train``."""
        found = known.get(id(module))
        if found is None:
            plain, trains = self._is_plain(module), trains_as_usual(module, self.tensors.torch.nn.Module)
            for child in module._modules.values():
                if child is not None:
                    below = self.is_usual(child, known)
                    plain, trains = plain and below[0], trains and below[1]
            found = known[id(module)] = plain, trains
        return found

    def _is_plain(self, module):
        """Whether a module's forward is its class' own, on plain tensors, without hooks."""
        kind = type(module)
        made = self.classes.get(id(module))
        if made is None and ORIGINAL.get(kind, (None,))[0] is not kind.forward:
            return False
        if made is not None and made != (kind, kind.forward, tuple(module._parameters)):
            return False
        usual = self.tensors.usual
        for parameter in module._parameters.values():
            if parameter is not None and type(parameter) not in usual:
                return False  # a quantised weight computes by itself
        own = module.__dict__
        if "forward" in own or "__call__" in own or not own.keys().isdisjoint(module._parameters):
            return False
        if made is None and tuple(module._parameters) != ORIGINAL[kind][1]:
            return False
        return not (
            own.get("_forward_hooks") or own.get("_forward_pre_hooks")
            or own.get("_backward_hooks") or own.get("_backward_pre_hooks")
        )  # fmt: skip

    def _tensors(self):
        used = {}
        for number, tensor in self.live.items():
            told = self._geometry(tensor, used)
            if self.told_tensors.get(number) != told:
                self.told_tensors[number] = told
                yield number, told
        self.storage_numbers = used
        for number in self.told_storages.keys() - {number for number, _ in used.values()}:
            del self.told_storages[number]

    def _geometry(self, tensor, used):
        torch, dtype = self.tensors.torch, self.tensors.names.get(tensor.dtype) or str(tensor.dtype)[6:]
        kind = "parameter" if isinstance(tensor, torch.nn.Parameter) else "tensor"
        if not self.tensors.is_plain(tensor):
            return None, dtype, tuple(tensor.shape), None, 0, bool(tensor.requires_grad), kind
        storage = tensor.untyped_storage()
        at = (storage.data_ptr(), storage.nbytes())
        if at not in used:
            known = self.storage_numbers.get(at)
            used[at] = known or (
                next(self.numbers),
                storage,
            )  # held: its address means nothing else meanwhile
        return (
            used[at][0], dtype, tuple(tensor.shape), tensor.stride(),
            tensor.storage_offset(), tensor.requires_grad, kind,
        )  # fmt: skip

    def _storages(self, parcel):
        said = []
        for (address, size), (number, _) in self.storage_numbers.items():
            data = ctypes.string_at(address, size) if size else b""
            if self.told_storages.get(number) != data:
                self.told_storages[number] = data
                said.append([number, parcel.add_bytes(data)])
        return said

    def _slots(self):
        for number, (_, slots) in self.adapted.items():
            for name, slot in slots.items():
                told = slot_view(slot, self.tensors.torch)
                if self.told_slots.get((number, name)) != told:
                    self.told_slots[number, name] = told
                    yield number, name, told

    def forget(self, number):
        """The audit has another value for a tensor: what it was told of the memory is no longer so."""
        told = self.told_tensors.get(number)
        if told is not None:
            self.told_storages.pop(told[0], None)


def trains_as_usual(module, usual):
    """Whether a module's ``train`` and ``eval`` are those that torch gives it."""
    kind, own = type(module), module.__dict__
    return kind.train is usual.train and kind.eval is usual.eval and "train" not in own and "eval" not in own


def hooks_everywhere():
    """Whether hooks are set for all modules."""
    return any(getattr(module_module(), name, None) for name in GLOBAL_HOOKS)


def module_module():
    """torch's own module of modules, which holds the hooks of every module."""
    return sys.modules["torch.nn.modules.module"]


GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks")
ORIGINAL: dict = {}  # class of torch's -> (its forward before the subject was imported, the names of its parameters)


def keep_originals(torch):
    """Note what torch's own layers are before a library can change them.

    Those of which a class, tensors and plain numbers are all there is: a convolution that is made there (a copy, say)
    has tuples beside, and computes there.
    """
    for kind, names in ((torch.nn.Linear, ("weight", "bias")), (torch.nn.Embedding, ("weight",))):
        ORIGINAL[kind] = (kind.forward, names)


def described(module, told):
    """A module's description for the audit, which builds its stand-in from it."""
    training, plain, trains, children, parameters, buffers, kind = told
    facts = {k: v for k, v in vars(module).items() if k[:1] != "_" and k != "training" and is_simple(v)}
    return {
        "class": kind.__name__,
        "bases": bases_of(kind),
        "training": training,
        "plain": plain,
        "trains": trains,
        "children": children,
        "parameters": parameters,
        "buffers": buffers,
        "attributes": facts,
    }


@functools.cache
def bases_of(kind):
    """The full names of a class and of those that it descends from."""
    return ["%s.%s" % (c.__module__, c.__qualname__) for c in kind.__mro__]


def is_simple(value):
    """Whether a value can stand in a message as it is."""
    return (
        value is None
        or type(value) in (bool, int, str)
        or (type(value) is float and abs(value) < float("inf"))
    )


def slot_view(slot, torch):
    """How the canonical tensor lies in the live one: None (all of it), strides, a computed value, or an error."""
    view = getattr(slot, "view", None)
    if getattr(slot, "read", None) is not None:
        return None
    if view is INTERFACE.identity:
        return None
    tensor = slot.tensor
    try:
        with torch.no_grad():
            found = view(tensor)
            if found is tensor:
                return None
            if not isinstance(found, torch.Tensor):
                return {"opaque": type(found).__name__}
            told = {"shape": list(found.shape), "stride": list(found.stride()), "offset": found.storage_offset(),
                    "dtype": str(found.dtype)[6:]}  # fmt: skip
            told["copy"] = bool(found.numel()) and (
                found.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()
                or found.dtype != tensor.dtype
            )
            told["entries"] = _entries(view, tensor, torch)
            return told
    except Exception as error:
        return {"failed": failure(error)}


def _entries(view, tensor, torch):
    """Shape, strides and offset of the view of a contiguous tensor of that shape; None where it takes no such."""
    try:
        found = view(torch.arange(tensor.numel()).reshape(tensor.shape))
        return [list(found.shape), list(found.stride()), found.storage_offset()]
    except Exception:
        return None


# Serving an implementation of torch


class TorchServer:
    """Answers for an ``Implementation``."""

    kind = "torch"

    def __init__(self, subject):
        self.subject = subject
        self.tensors = TorchTensors()
        self.torch = self.tensors.torch
        self.worlds, self.calls, self.blanks, self.compiled = {}, {}, {}, {}
        self.rng = b""
        self.world = None
        self.before, self.left = {}, {}

    def without_product(self):
        """The half dtypes in which this torch multiplies no matrices on the CPU, as none before 2.2 does in float16."""
        found = []
        for name in ("bfloat16", "float16"):
            x = self.torch.ones(2, 2, dtype=getattr(self.torch, name))
            try:
                self.torch.nn.functional.linear(x, x, x[0])
            except RuntimeError:
                found.append(name)
        return found

    # What comes in

    def take(self, header, raws):
        """What the audit changed since: released worlds, tensors, flags, children, the generator, the modes."""
        for number in header.get("release", ()):
            self.worlds.pop(number, None)
            self.calls.pop(number, None)
        if "rng" in header:
            self.rng = raws[header["rng"]].data
            self.torch.set_rng_state(self.tensors.tensor(raws[header["rng"]]))
        self.world = None
        if header.get("mark"):
            self.mark()
        if "world" in header:
            self.world = self.worlds.setdefault(header["world"], World(self.tensors))
            for base in header.get("bases", ()):
                quantises = base["recipe"]["kind"] == "quantised"
                (self.build_quantised if quantises else self.build)(base, raws)
            self.pushed(header.get("push", {}), raws)

    def pushed(self, push, raws):
        """Write what the audit wrote."""
        world, torch = self.world, self.torch
        with torch.no_grad():
            for storage, place in push.get("storages", ()):
                self.write_storage(storage, raws[place])
            for number, place in push.get("tensors", ()):
                world.objects[number].data = self.tensors.tensor(raws[place])
                world.forget(number)
        for number, flag in push.get("requires_grad", ()):
            world.objects[number].requires_grad_(flag)
        for number, flag in push.get("training", ()):
            world.objects[number].training = flag
        for number, name, child in push.get("children", ()):
            world.objects[number]._modules[name] = None if child is None else world.objects[child]

    def write_storage(self, storage, raw):
        """Write memory as it is at the audit, through every tensor that lives in it."""
        world, torch = self.world, self.torch
        fresh = self.tensors.tensor(raw).untyped_storage()
        for number, tensor in world.live.items():
            told = world.told_tensors[number]
            if told[0] == storage:
                value = torch.empty(0, dtype=tensor.dtype).set_(fresh, told[4], told[2], told[3])
                tensor.copy_(value)
        world.told_storages[storage] = raw.data

    # What is asked

    def serve(self, header, raws, parcel):
        """The result of a request, encoded."""
        return getattr(self, "do_" + header["op"])(header, raws, parcel)

    def do_invoke(self, header, raws, parcel):
        """A method of the subject."""
        arguments = [self.decoded(value, raws) for value in header["arguments"]]
        return self.encoded(getattr(self.subject, header["method"])(*arguments), parcel)

    def do_method(self, header, raws, parcel):
        """A method of a module: train, to, double, ..."""
        module = self.world.objects[header["module"]]
        arguments = [self.decoded(value, raws) for value in header["arguments"]]
        named = {key: self.decoded(value, raws) for key, value in header.get("named", {}).items()}
        found = getattr(module, header["method"])(*arguments, **named)
        return {"module": header["module"]} if found is module else self.encoded(found, parcel)

    def do_attribute(self, header, raws, parcel):
        """An attribute of a module that is none of its tensors and children."""
        return self.encoded(getattr(self.world.objects[header["module"]], header["name"]), parcel)

    def do_call(self, header, raws, parcel):
        """``module(*arguments)``; with gradients on, the graph is kept until the audit lets go of it."""
        module, inputs, graphs = self.world.objects[header["module"]], [], []
        within = contextlib.nullcontext
        if "compiled" in header:
            (module, graphs), within = self.compiled[header["compiled"]], self.ours  # compilers set variables
        arguments = [self.decoded(value, raws, inputs) for value in header["arguments"]]
        named = {key: self.decoded(value, raws, inputs) for key, value in header.get("named", {}).items()}
        outputs = []
        with within():
            result = self.encoded(module(*arguments, **named), parcel, outputs)
        flowing = [t for t in outputs if t.requires_grad]
        if flowing and self.torch.is_grad_enabled():
            self.calls[header["call"]] = (outputs, [leaf for leaf, _, _ in inputs], self.world)
        reply = {"value": result, "flows": [bool(t.requires_grad) for t in outputs], "graphs": len(graphs)}
        written = [(i, x) for i, (_, x, was) in enumerate(inputs) if self.tensors.raw(x).data != was]
        if written:
            reply["written"] = [[i, parcel.add(x)] for i, x in written]
        return reply

    def do_backward(self, header, raws, parcel):
        """∂L/∂inputs and ∂L/∂tensors of a call from ∂L/∂outputs."""
        outputs, inputs, world = self.calls[header["call"]]
        given = [None if g is None else self.tensors.tensor(raws[g]) for g in header["gradients"]]
        live = [(n, t) for n, t in world.live.items() if t.requires_grad and t.is_leaf]
        leaves = [t for _, t in live] + [t for t in inputs if t.requires_grad]
        for leaf in leaves:
            leaf.grad = None
        pairs = [(y, g) for y, g in zip(outputs, given) if g is not None and y.requires_grad]
        self.torch.autograd.backward([y for y, _ in pairs], [g for _, g in pairs], retain_graph=True)
        reply = {
            "inputs": [None if t.grad is None else parcel.add(t.grad) for t in inputs],
            "tensors": [[n, parcel.add(t.grad)] for n, t in live if t.grad is not None],
        }
        for leaf in leaves:
            leaf.grad = None
        return reply

    def do_compile(self, header, raws, parcel):
        """The module under ``torch.compile``; what is compiled is counted."""
        graphs = []
        with self.ours():
            dynamo = importlib.import_module("torch._dynamo")
        dynamo.reset()
        inner = dynamo.lookup_backend(header["backend"])

        def counted(graph, inputs):
            graphs.append(len(graph.graph.nodes))
            return inner(graph, inputs)

        module = self.torch.compile(self.world.objects[header["module"]], backend=counted)
        self.compiled = {header["compiled"]: (module, graphs)}

    def do_slot(self, header, raws, parcel):
        """``read``, ``write`` or ``gradient`` of a slot whose canonical value is computed."""
        _, slots = self.world.adapted[header["adapted"]]
        slot, action = slots[header["slot"]], header["action"]
        if action != "gradient":
            slot = dataclasses.replace(slot, tensor=self.tensors.tensor(raws[header["live"]]).clone())
        if action == "read":
            return {"tensor": parcel.add(slot.canonical())}
        value = self.tensors.tensor(raws[header["value"]])
        if action == "write":
            slot.put(value)
            return {"tensor": parcel.add(slot.tensor)}
        with self.torch.no_grad():
            return {"tensor": parcel.add(slot.gradient(value))}

    def do_state_dict(self, header, raws, parcel):
        """A module's own ``state_dict``: its tensors by number where the audit knows them."""
        found = self.world.objects[header["module"]].state_dict(
            keep_vars=True, prefix=header.get("prefix", "")
        )
        return [[name, self.encoded(value, parcel)] for name, value in found.items()]

    def do_copy(self, header, raws, parcel):
        """A deep or a pickled copy of a module, in a world of its own; which numbers stand for which."""
        memo, old = {}, self.world
        module = old.objects[header["module"]]
        # The pickle is of this process' own making, and stays in it.
        pickled = header["how"] == "pickle"
        module = pickle.loads(pickle.dumps(module)) if pickled else copy.deepcopy(module, memo)
        self.world = self.worlds[header["into"]] = World(self.tensors)
        self.world.add_root(module)
        self.world.survey()
        twins = [[n, self.world.number(memo[id(t)])] for n, t in old.objects.items() if id(t) in memo
                 and id(memo[id(t)]) in self.world.number_of]  # fmt: skip
        return {"module": self.world.number(module), "twins": twins}

    def mark(self):
        """A claim begins: note the state that is everybody's, and seed the generators that are not handed over."""
        random.seed(0)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(0)
        self.before, self.left = facts(self.torch), {}

    def do_restore(self, header, raws, parcel):
        """A claim ends: what of the state has changed, and put it back."""
        after = dict(facts(self.torch), **self.left)
        changed = [
            [what, shown(was), shown(after[what])] for what, was in self.before.items() if after[what] != was
        ]
        restore(self.torch, self.before)
        return changed

    # Values

    def decoded(self, value, raws, inputs=None):
        """A value from a message. ``inputs`` collects (leaf that gradients flow to, what stands for it, its bytes)."""
        if isinstance(value, list):
            return [self.decoded(part, raws, inputs) for part in value]
        if not isinstance(value, dict):
            return value
        ((kind, content),) = [(k, v) for k, v in value.items() if k not in ("flows", "derived")]
        if kind == "tensor":
            return self.input(value, raws, inputs)
        if kind == "known":
            return self.world.objects[content]
        if kind == "adapted":
            return self.world.adapted[content][0]
        if kind == "spec":
            known = INTERFACE.AdapterSpec.__dataclass_fields__
            return INTERFACE.AdapterSpec(**{k: v for k, v in content.items() if k in known})
        if kind == "path":
            return Path(content)
        if kind == "dtype":
            return getattr(self.torch, content)
        if kind == "tuple":
            return tuple(self.decoded(part, raws, inputs) for part in content)
        if kind == "mapping":
            return {k: self.decoded(v, raws, inputs) for k, v in content}
        raise BadMessage("a value of the kind %r" % kind)

    def input(self, value, raws, inputs):
        """A tensor of a call; one that the audit computed from another is no leaf here either."""
        raw = raws[value["tensor"]]
        tensor = self.tensors.tensor(raw)
        if inputs is None:
            return tensor
        if value.get("flows"):
            tensor.requires_grad_(True)
        derived = tensor.clone() if value.get("derived") and value.get("flows") else tensor
        inputs.append((tensor, derived, self.tensors.raw(derived).data if raw.layout else raw.data))
        return derived

    def encoded(self, value, parcel, outputs=None):
        """A value for a message; what cannot be sent goes as the name of its type."""
        torch = self.torch
        if is_simple(value):
            return value
        if isinstance(value, torch.Tensor):
            return self.output(value, parcel, outputs)
        if isinstance(value, torch.nn.Module) and self.world is not None:
            return {"module": self.world.add_root(value)}
        if hasattr(value, "module") and hasattr(value, "slots"):
            return self.adapted(value, parcel)
        if isinstance(value, INTERFACE.AdapterSpec):
            return {"spec": {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value)[6:]}
        if isinstance(value, Path):
            return {"path": str(value)}
        if isinstance(value, (tuple, list)) and type(value).__name__ in ("tuple", "list"):
            return {type(value).__name__: [self.encoded(part, parcel, outputs) for part in value]}
        if hasattr(value, "items") and hasattr(value, "keys"):
            content = [[plain(k), self.encoded(v, parcel, outputs)] for k, v in value.items()]
            return {"mapping": content, "class": type(value).__name__}
        return {"opaque": type(value).__name__}

    def output(self, value, parcel, outputs):
        """A tensor by its number where the audit knows it, else by value."""
        if outputs is None and self.world is not None and id(value) in self.world.number_of:
            return {"known": self.world.number(value)}
        if outputs is not None:
            outputs.append(value)
        return {"tensor": parcel.add(value)}

    def adapted(self, value, parcel):
        """An ``Adapted``: its module, and its slots with the live tensors behind them."""
        number = next(World.numbers)
        told = {"adapted": number}
        module = value.module
        told["module"] = self.encoded(module, parcel) if module is not None else None
        try:
            slots = dict(value.slots or {})
        except Exception as error:
            return dict(told, failed=failure(error), slots=[])
        usable = {}
        told["slots"] = [[plain(name), self.slot(name, slot, usable)] for name, slot in slots.items()]
        self.world.adapted[number] = (value, usable)
        return told

    def slot(self, name, slot, usable):
        if isinstance(slot, self.torch.Tensor) or not hasattr(slot, "tensor"):
            return {"opaque": type(slot).__name__}
        if not isinstance(slot.tensor, self.torch.Tensor):
            return {"holds": type(slot.tensor).__name__}
        usable[name] = slot
        if id(slot.tensor) not in self.world.number_of:
            self.world.loose.append(slot.tensor)
        computed = getattr(slot, "read", None) is not None
        told = {
            "live": self.world.number(slot.tensor),
            "whole": slot.view is INTERFACE.identity and not computed,
        }
        return dict(told, computed=[slot.write is not None, slot.gradient is not None]) if computed else told

    def state(self, header, parcel):
        """What has changed on this side: the tree of the request's world, torch's generator."""
        told = {}
        if self.world is not None:
            told["state"] = self.world.changes(parcel)
        rng = self.tensors.storage_bytes(self.torch.get_rng_state())
        if rng != self.rng:
            self.rng = rng
            told["rng"] = parcel.add_bytes(rng)
        return told

    # Bases and models, built as they are at the audit

    def build(self, base, raws):
        """A module of the audit's, here: built from its recipe, then given the audit's tensors."""
        module = self.blank(base["recipe"])
        places = dict(module.named_modules(remove_duplicate=False))
        numbers = dict(base["modules"])
        if set(places) != set(numbers):
            raise lacking("%s has other layers here: %s" % (
                base["recipe"]["class"], some(set(places) ^ set(numbers))))  # fmt: skip
        first = {}
        for path, number in base["modules"]:
            if number in first:
                parent, _, last = path.rpartition(".")
                module.get_submodule(parent)._modules[last] = first[number]
            first.setdefault(number, places[path])
        self.fill(module, base, raws)
        for number, place in first.items():
            self.world.number(place, number)
            self.world.classes[id(place)] = (type(place), type(place).forward, tuple(place._parameters))
        for number in base.get("evaluating", ()):
            first[number].training = False
        for number in base.get("leaves", ()):
            first[number].register_forward_hook(lambda module, args, output: output.requires_grad_(True))
        self.world.roots.append(module)
        self.settle({number for _, number, *_ in base["tensors"]})

    def build_quantised(self, base, raws):
        """A linear layer that is quantised here as it was there. Its tensors are made here, so all of them are told."""
        torch = self.torch
        arguments = dict(base["recipe"]["arguments"])
        quantiser = arguments.pop("quantiser")
        linear = self.linear(**arguments)
        for name, _, place, *_ in base["tensors"]:
            value = self.tensors.tensor(raws[place])
            linear._parameters[name] = torch.nn.Parameter(value, requires_grad=False)
        with self.ours():
            module = quantised(linear, quantiser)
        for path, number in base["modules"]:
            self.world.number(module.get_submodule(path), number)
        self.world.roots.append(module)

    def fill(self, module, base, raws):
        """The audit's tensors, tied where they are tied there."""
        torch, made = self.torch, {}
        for path, number, place, grad, is_parameter in base["tensors"]:
            owner, _, name = path.rpartition(".")
            table = module.get_submodule(owner)
            table = table._parameters if is_parameter else table._buffers
            if name not in table:
                if not is_parameter:
                    continue
                raise lacking("%s has no tensor %s here" % (base["recipe"]["class"], path))
            if number not in made:
                value = self.tensors.tensor(raws[place])
                made[number] = torch.nn.Parameter(value, requires_grad=grad) if is_parameter else value
                self.world.number(made[number], number)
                memory = value.untyped_storage()
                self.world.storage_numbers[memory.data_ptr(), memory.nbytes()] = (number, memory)
            table[name] = made[number]
        given = {path for path, *_ in base["tensors"]}
        further = [n for n, _ in module.named_parameters(remove_duplicate=False) if n not in given]
        if further:
            raise lacking("%s has further tensors here: %s" % (base["recipe"]["class"], some(further)))

    def settle(self, sent):
        """The audit knows what it sent: it need not be told again. It knows nothing of what is only here.

        Another release of transformers has further buffers.
        """
        known = set(self.world.told_tensors)
        self.world.settle()
        for number in set(self.world.told_tensors) - known - sent:
            self.world.told_storages.pop(self.world.told_tensors.pop(number)[0], None)

    def blank(self, recipe):
        """A module of that class, its tensors of no meaning; torch's generator is left alone."""
        if recipe["kind"] == "transformers":
            return self.transformer(recipe)
        if recipe["kind"] == "chain":
            return self.chain(recipe)
        if recipe["kind"] == "scaled_embedding":
            return self.scaled_embedding(recipe["arguments"])
        kind = getattr(self.torch.nn, recipe["class"], None)
        if recipe["kind"] == "conv1d":
            with self.ours():
                kind = importlib.import_module("transformers.pytorch_utils").Conv1D
        elif recipe["kind"] == "tree":
            module = kind()
            for name, child in recipe["children"].items():
                module.add_module(name, self.blank(child))
            return module
        if kind is self.torch.nn.Linear:
            return self.linear(**recipe["arguments"])
        key = json.dumps(recipe, sort_keys=True)
        if key not in self.blanks:
            with self.torch.device("meta"):
                self.blanks[key] = kind(**recipe["arguments"])
        return copy.deepcopy(self.blanks[key])

    def scaled_embedding(self, arguments):
        """An embedding whose output is multiplied by its buffer ``embed_scale``."""
        torch = self.torch

        class ScaledEmbedding(torch.nn.Embedding):
            def forward(self, tokens):
                return super().forward(tokens) * self.embed_scale.to(self.weight.dtype)

        with torch.device("meta"):
            module = ScaledEmbedding(**arguments)
        module.register_buffer("embed_scale", torch.tensor(1.0), persistent=False)
        return module

    def chain(self, recipe):
        """Layers one after the other, each a submodule of its own name, with plain operations in between."""
        torch, steps = self.torch, recipe["steps"]

        class Chain(torch.nn.Module):
            def forward(self, x):
                for step, content in steps:
                    if step == "layer":
                        x = self.get_submodule(content)(x)
                    elif step == "mix":
                        q, k, v = x.split(content, dim=-1)
                        x = v * (1 + q.mean(-1, keepdim=True)) * (1 + k.mean(-1, keepdim=True))
                    else:
                        x = torch.tanh(x) if step == "tanh" else x.flatten(1)
                return x

        module = Chain()
        for path, child in recipe["children"].items():
            node, (*folders, last) = module, path.split(".")
            for name in folders:
                if name not in node._modules:
                    node.add_module(name, torch.nn.Module())
                node = node._modules[name]
            node.add_module(last, self.blank(child))
        return module

    def linear(self, in_features, out_features, bias):
        """An ``nn.Linear`` whose tensors are still to come; the usual way there takes longer than an adapter."""
        nn = self.torch.nn
        module = nn.Linear.__new__(nn.Linear)
        nn.Module.__init__(module)
        module.in_features, module.out_features = in_features, out_features
        module._parameters.update(weight=None, bias=None)
        return module

    @contextlib.contextmanager
    def ours(self):
        """What is done for the audit's sake: what it changes or draws here is not laid at the subject's door."""
        was, rng = facts(self.torch), self.torch.get_rng_state()
        try:
            yield
        finally:
            self.torch.set_rng_state(rng)
            self.before.update({what: now for what, now in facts(self.torch).items() if now != was[what]})

    def transformer(self, recipe):
        """A model of transformers', built once a process and copied."""
        key = json.dumps(recipe, sort_keys=True)
        if key not in self.blanks:
            with self.ours():
                self.blanks[key] = made_by_transformers(recipe)
        return copy.deepcopy(self.blanks[key])


def quantised(linear, quantiser):
    """A linear layer as the audit quantises it. Raises Unsupported where the library is not in this environment."""
    library, _, how = quantiser.partition(" ")
    try:
        own = importlib.import_module(library)
    except ImportError:
        raise lacking("no %s in the subject's environment" % library) from None
    if library == "torchao":
        held = sys.modules["torch"].nn.Sequential(linear)
        own.quantization.quantize_(held, own.quantization.Int8WeightOnlyConfig())
        return held[0]
    own = own.nn
    sizes = linear.in_features, linear.out_features, linear.bias is not None
    if how == "4 bit":
        layer = own.Linear4bit(*sizes, linear.weight.dtype)
    else:
        layer = own.Linear8bitLt(*sizes, has_fp16_weights=False)
    layer.load_state_dict(linear.state_dict())
    return layer.to("cpu")


def made_by_transformers(recipe):
    """A model of that class and config, in training mode. Raises Unsupported where this release has no such."""
    try:
        import transformers

        config = getattr(transformers, recipe["config"])(**recipe["settings"])
        return getattr(transformers, recipe["class"])(config).train()
    except (ImportError, AttributeError) as error:
        raise lacking("no %s here: %s" % (recipe["class"], one_line(error))) from error


def lacking(words):
    """Unsupported for what this environment lacks, and not the subject."""
    error = INTERFACE.Unsupported(words)
    error.lacking = True
    return error


def some(names):
    """A few names, and how many there are."""
    names = sorted(names)
    return ", ".join(names[:3]) + (", ... (%d)" % len(names) if len(names) > 3 else "")


def plain(value):
    """A value as JSON has it, else its text."""
    if is_simple(value):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "items"):
        return {str(k): plain(v) for k, v in value.items()}
    return repr(value)


def shown(value):
    """A fact of the process for a message."""
    return {str(k): str(v) for k, v in value.items()} if isinstance(value, dict) else str(value)


# State that is everybody's


def _folder():
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "a folder that is gone"


def _autocast(torch, setting=None):
    try:
        if setting is None:
            return torch.is_autocast_enabled("cpu")
        return torch.set_autocast_enabled("cpu", setting)
    except TypeError:  # before torch 2.4
        return torch.is_autocast_cpu_enabled() if setting is None else torch.set_autocast_cpu_enabled(setting)


BY_TORCH = (
    "TORCHINDUCTOR_"  # torch's compiler sets these, whoever is the first to import something that imports it
)


def facts(torch):
    """Torch's modes and the process' own state, by what they are called in a finding."""
    table = vars(module_module())
    return {
        "torch's default dtype": torch.get_default_dtype(),
        "torch's gradient mode": torch.is_grad_enabled(),
        "torch's thread count": torch.get_num_threads(),
        "torch's deterministic mode": torch.are_deterministic_algorithms_enabled(),
        "torch's autocast on the CPU": _autocast(torch),
        "torch's global module hooks": {
            name: dict(hooks)
            for name, hooks in table.items()
            if name.startswith("_global_") and name.endswith("hooks")
        },
        "the working directory": _folder(),
        "the environment": {k: v for k, v in os.environ.items() if not k.startswith(BY_TORCH)},
    }


def restore(torch, before):
    """Put the state back as :func:`facts` found it."""
    if not before:
        return
    torch.set_default_dtype(before["torch's default dtype"])
    torch.set_grad_enabled(before["torch's gradient mode"])
    torch.set_num_threads(before["torch's thread count"])
    if torch.are_deterministic_algorithms_enabled() != before["torch's deterministic mode"]:
        torch.use_deterministic_algorithms(
            before["torch's deterministic mode"]
        )  # imports a compiler, the first time
    _autocast(torch, before["torch's autocast on the CPU"])
    for name, hooks in before["torch's global module hooks"].items():
        table = getattr(module_module(), name)
        table.clear()
        table.update(hooks)
    now = {k: v for k, v in os.environ.items() if not k.startswith(BY_TORCH)}
    if before["the environment"] != now:
        for name in set(now) - set(before["the environment"]):
            del os.environ[name]
        os.environ.update(before["the environment"])
    try:
        os.chdir(before["the working directory"])
    except OSError:
        pass


# Serving arrays


class ArrayServer:
    """Answers for an ``ArrayImplementation``: plain calls with arrays, no mirrors."""

    kind = "array"

    def __init__(self, subject):
        self.subject, self.tensors = subject, NumpyTensors()
        self.adapted, self.numbers = {}, itertools.count(1)

    def without_product(self):
        """Nothing is known of another framework's dtypes but what the subject says."""
        return []

    def take(self, header, raws):
        """Let go of what the audit has let go of."""
        for number in header.get("release", ()):
            self.adapted.pop(number, None)

    def serve(self, header, raws, parcel):
        """The result of a method, encoded; ``mark`` and ``restore`` have nothing to watch here."""
        if header["op"] == "restore":
            return []
        arguments = [self.decoded(value, raws) for value in header["arguments"]]
        found = getattr(self.subject, header["method"])(*arguments)
        if header.get("keeps"):
            number = next(self.numbers)
            self.adapted[number] = found
            return {"adapted": number}
        return self.encoded(found, parcel)

    def decoded(self, value, raws):
        """A value from a message."""
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        if kind == "tensor":
            return self.tensors.tensor(raws[content])
        if kind == "mapping":
            return {name: self.decoded(part, raws) for name, part in content}
        if kind == "adapted":
            return self.adapted[content]
        if kind == "spec":
            known = INTERFACE.AdapterSpec.__dataclass_fields__
            return INTERFACE.AdapterSpec(**{k: v for k, v in content.items() if k in known})
        return Path(content)

    def encoded(self, value, parcel):
        """A value for a message."""
        if is_simple(value):
            return value
        if isinstance(value, INTERFACE.AdapterSpec):
            return {"spec": {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}}
        if isinstance(value, (tuple, list)):
            return {"tuple": [self.encoded(part, parcel) for part in value]}
        if isinstance(value, (set, frozenset)):
            return {"tuple": sorted(str(part) for part in value)}
        if isinstance(value, Path):
            return {"path": str(value)}
        if hasattr(value, "items"):
            return {"mapping": [[str(k), self.encoded(v, parcel)] for k, v in value.items()]}
        if hasattr(value, "dtype") and hasattr(value, "shape"):
            return {"tensor": parcel.add(value)}
        return {"opaque": type(value).__name__}

    def state(self, header, parcel):
        """Arrays are told by value: there is no state to keep in step."""
        return {}


# The loop


def failure(error):
    """What an exception is in a message: its type, its text, where it was raised, and the innermost frames."""
    told = {
        "type": type(error).__name__,
        "text": one_line(error),
        "bases": [c.__name__ for c in type(error).__mro__],
    }
    if isinstance(error, SystemExit):
        told["code"] = error.code if is_simple(error.code) else repr(error.code)
    trace, frames, own = error.__traceback__, collections.deque(maxlen=50), wrapper_code()
    while trace is not None:
        code = trace.tb_frame.f_code
        told["file"], told["line"] = code.co_filename, trace.tb_lineno
        frames.append([code.co_filename, trace.tb_lineno, code in own])
        trace = trace.tb_next
    return dict(told, frames=list(frames))


SERVED: list = []  # the subject
WRAPPER: set = set()  # the code of the subject's file that is the wrapper's, not the library's


def wrapper_code():
    """Which code is the wrapper's; found out when something is raised: it asks the subject where its library lies."""
    if SERVED and not WRAPPER:
        note_wrapper(SERVED.pop())
    return WRAPPER


def note_wrapper(subject):
    """Note the methods of the class and of its bases but the interface's.

    Where the library lies elsewhere, the functions beside the class, too.
    """
    kind = type(subject)
    module = sys.modules.get(kind.__module__)
    if module is not None and lies_elsewhere(subject):
        for function in vars(module).values():
            if inspect.isfunction(function) and function.__module__ == module.__name__:
                WRAPPER.update(nested(function.__code__))
    for base in kind.__mro__:
        if base is object or base.__module__.startswith("oracles."):
            continue
        for member in vars(base).values():
            function = inspect.unwrap(getattr(member, "__func__", member))
            if inspect.isfunction(function):
                WRAPPER.update(nested(function.__code__))


def lies_elsewhere(subject):
    """Whether the subject says that its library's forward pass stands in another file than itself."""
    try:
        places = [subject.source(variant, "forward") for variant in subject.variants]
        own = Path(inspect.getfile(type(subject))).resolve()
    except Exception:
        return False
    return any(places) and all(Path(place[0]).resolve() != own for place in places if place)


def nested(code):
    """A function's code and that of the functions within."""
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return [code] + [n for c in inner for n in nested(c)]


class Logged:
    """Log records from WARNING on, for the next reply, also of loggers that hand nothing on to the root."""

    def __init__(self):
        self.records, self.usual = [], logging.LogRecord

    def listen(self):
        """From now on; what else makes records, a library's own, goes on making them."""
        self.usual = logging.getLogRecordFactory()
        logging.getLogger().addHandler(logging.NullHandler())  # nothing of it belongs on the screen
        logging.setLogRecordFactory(self.record)

    def record(self, *args, **named):
        """Make a record, and keep its logger, level and text."""
        made = self.usual(*args, **named)
        if made.levelno >= logging.WARNING and not is_of_torch(made.pathname):
            try:
                self.records.append([made.name, made.levelno, made.getMessage()[:2000]])
            except Exception:  # arguments that do not fit the message are the logger's to complain about
                pass
        return made


LOGGED = Logged()


def is_of_torch(file):
    """Whether a file is torch's own, which warns of how it is used whoever uses it."""
    torch = getattr(sys.modules.get("torch"), "__file__", None)
    return torch is not None and file.startswith(os.path.dirname(torch) + os.sep)


def keep(caught, message, category, file, line, *more):
    """Add a warning to those for the next reply, unless torch gives it of itself."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename in (__file__, warnings.__file__):
        frame = frame.f_back
    if frame is None or not is_of_torch(frame.f_code.co_filename):
        caught.append([category.__name__, str(message), file, line])


def answer(server, header, raws):
    """(header, raws) of the reply to one request: ok, unsupported or failed, and what has changed meanwhile."""
    parcel, reply = Parcel(server.tensors), {"id": header.get("id")}
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        caught, warnings.showwarning = [], lambda *told, **more: keep(caught, *told)
        try:
            server.take(header, raws)
            with modes(server, header):
                result = server.serve(header, raws, parcel)
            reply.update(status="ok", result=result)
        except BaseException as error:
            reply.update(refused(error))
            parcel = Parcel(server.tensors)
    if LOGGED.records:
        reply["logs"], LOGGED.records = LOGGED.records, []
    if caught:
        reply["warnings"] = caught
    try:
        reply.update(server.state(header, parcel))
    except BaseException as error:
        reply.update(refused(error))
        reply.pop("result", None)
        reply.pop("state", None)
    return reply, parcel.raws


def refused(error):
    """A reply's status for an exception."""
    if isinstance(error, INTERFACE.Unsupported):
        told = {"status": "unsupported", "reason": one_line(error) or ""}
        return dict(told, lacking=True) if getattr(error, "lacking", False) else told
    return {"status": "failed", "error": failure(error)}


class modes:  # noqa: N801
    """The audit's modes of torch around a request; that the subject left the gradient mode changed is noted."""

    def __init__(self, server, header):
        self.torch, self.asked, self.server = getattr(server, "torch", None), header.get("modes", {}), server
        self.held = []

    def __enter__(self):
        torch = self.torch
        if torch is None:
            return
        torch.set_grad_enabled(self.asked.get("grad", True))
        if self.asked.get("inference"):
            self.held.append(torch.inference_mode())
        if "autocast" in self.asked:
            self.held.append(torch.autocast("cpu", dtype=getattr(torch, self.asked["autocast"])))
        for mode in self.held:
            mode.__enter__()

    def __exit__(self, *what):
        for mode in reversed(self.held):
            mode.__exit__(None, None, None)
        if self.torch is None:
            return
        if self.torch.is_grad_enabled() != self.asked.get("grad", True):
            self.server.left["torch's gradient mode"] = self.torch.is_grad_enabled()
        self.torch.set_grad_enabled(True)


def load_interface(path, name):
    """A file of the interface under its own name, and what it exports under ``adapter_conformance``."""
    for package in ("oracles", "adapter_conformance"):
        if package not in sys.modules:
            sys.modules[package] = types.ModuleType(package)
            sys.modules[package].__path__ = []
    module = load_file(path, "oracles." + name)
    setattr(sys.modules["oracles"], name, module)
    sys.modules["adapter_conformance." + name] = module
    for exported in getattr(module, "__all__", ()):
        setattr(sys.modules["adapter_conformance"], exported, getattr(module, exported))
    return module


def load_file(path, name):
    """A Python file as a module of that name."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


INTERFACE = None


def loaded(implementation, arrays, subject, attribute):
    """The server for the subject that ``subject``'s ``attribute`` is, or makes."""
    global INTERFACE
    INTERFACE = load_interface(implementation, "implementation")
    if importlib.util.find_spec("torch") is not None:
        import torch

        keep_originals(torch)
    of_arrays = None
    if Path(arrays).is_file() and importlib.util.find_spec("numpy") is not None:
        of_arrays = load_interface(arrays, "array_implementation").ArrayImplementation
    sys.path.extend(beside(subject))
    module = load_file(subject, "audited_" + Path(subject).stem)
    if attribute and not hasattr(module, attribute):
        raise BadMessage("it has no attribute %r" % attribute)
    found = getattr(module, attribute) if attribute else last_of(module, of_arrays)
    found = found() if inspect.isclass(found) else found
    if of_arrays is not None and isinstance(found, of_arrays):
        return ArrayServer(found)
    if isinstance(found, INTERFACE.Implementation):
        return TorchServer(found)
    raise BadMessage("its %s is a %s, expected an Implementation or an ArrayImplementation" % (
        attribute, type(found).__name__))  # fmt: skip


def last_of(module, of_arrays):
    """The last class of a file that is an implementation: what a shipped subject's file is about."""
    kinds = tuple(kind for kind in (INTERFACE.Implementation, of_arrays) if kind is not None)
    found = [
        v for v in vars(module).values() if inspect.isclass(v) and issubclass(v, kinds) and v not in kinds
    ]
    if not found:
        raise BadMessage("it defines no Implementation")
    return found[-1]


def greeting(server):
    """Who is served here: the subject's own words about itself, and this environment's versions."""
    subject = server.subject
    base = next(c for c in type(subject).__mro__ if c.__module__.startswith("oracles."))
    own = [n for n, f in vars(base).items() if callable(f) and not n.startswith("_")
           and getattr(type(subject), n, None) is not f]  # fmt: skip
    told = {
        n: as_told(getattr(subject, n, None))
        for n in ("name", "version", "variants", "layers", "dtypes", "inputs")
    }
    return dict(told, protocol=PROTOCOL, kind=server.kind, methods=own, doc=inspect.getdoc(type(subject)) or "",
                **{"class": type(subject).__name__}, environment=environment(),
                without_product=server.without_product(), quantisers=quantisers())  # fmt: skip


def quantisers():
    """Which of the libraries are here whose quantised layers the audit makes."""
    return [name for name in ("torchao", "bitsandbytes") if importlib.util.find_spec(name) is not None]


def as_told(value):
    """An identity's attribute: sets as sorted lists, anything odd as the text that it has."""
    if isinstance(value, (set, frozenset)):
        return {"set": sorted((plain(v) for v in value), key=str)}
    return value if is_simple(value) else {"odd": repr(value)[:200]}


def environment():
    """The versions of this environment that a result depends on."""
    told = {"python": platform.python_version()}
    for name in ("torch", "peft", "transformers", "numpy", "jax", "keras", "mlx"):
        if name in sys.modules:
            told[name] = str(getattr(sys.modules[name], "__version__", "") or _version(name)).split("+")[0]
    return told


def _version(name):
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "?"


def begin(channel):
    """The first exchange: the audit's settings for this process, then the subject, or why there is none."""
    header, _ = channel.receive()
    limit(header)
    if header.get("protocol") != PROTOCOL:
        channel.send({"status": "failed", "protocol": PROTOCOL, "error": failure(BadMessage(
            "the audit speaks protocol %s, this worker %d" % (header.get("protocol"), PROTOCOL)))}, [])  # fmt: skip
        return None
    try:
        server = loaded(*sys.argv[3:7])
        if server.kind == "torch":
            server.torch.set_num_threads(header.get("threads", 1))
        told = greeting(server)
    except BaseException as error:
        channel.send({"status": "failed", "protocol": PROTOCOL, "error": failure(error)}, [])
        return None
    SERVED.append(server.subject)
    LOGGED.listen()
    channel.send({"status": "ok", "protocol": PROTOCOL, "result": told}, [])
    gc.freeze()  # a few hundred thousand objects that stay: the collector need not walk them again and again
    return server


def limit(header):
    """The operating system's limits on this process, where it has such."""
    import faulthandler

    faulthandler.enable()  # a crash says in which line
    try:
        import resource
    except ImportError:
        return
    for name, value in (("RLIMIT_AS", header.get("address_space")), ("RLIMIT_CORE", 0)):
        if value is not None and hasattr(resource, name):
            try:
                resource.setrlimit(getattr(resource, name), (value, value))
            except (OSError, ValueError):
                pass


def renew(seconds):
    """So much processor time for the next answer; past it the system ends the process."""
    try:
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + seconds) + 1, hard))
    except (ImportError, OSError, ValueError):
        pass


def watch(parent):
    """End with the audit, even in the middle of an endless answer."""
    while True:
        time.sleep(2)
        if os.getppid() != parent:
            os._exit(0)


def beside(subject):
    """The subject's folder, where its library may lie; of a shipped one none: its neighbours have libraries' names."""
    folder = Path(subject).resolve().parent
    return [] if folder == Path(__file__).resolve().parents[1] else [str(folder)]


def main():
    """Serve until the audit is gone."""
    sys.path.pop(0)  # this file's folder: its neighbours must not stand in for a library's modules
    channel = Channel(int(sys.argv[1]), int(sys.argv[2]))
    for descriptor in (channel.read_fd, channel.write_fd):
        os.set_inheritable(descriptor, False)
    if hasattr(os, "getppid"):
        threading.Thread(target=watch, args=(os.getppid(),), daemon=True).start()
    server = begin(channel)
    while server is not None:
        message = channel.receive()
        if message is None:
            break
        header, raws = message
        if "seconds" in header:
            renew(header["seconds"])
        channel.send(*answer(server, header, raws))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
