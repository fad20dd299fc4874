"""The messages: what they carry comes back bit for bit, what is no message is refused, all of them fit the schema."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from harness.subjects.remote import process, worker
from harness.subjects.remote.messages import BadMessage, Channel, TorchTensors, schema
from harness.subjects.remote.process import Command, NoWorker
from harness.subjects.remote.proxy import remote_subject
from harness.subjects.remote.worker import NumpyTensors, pack
from oracles.implementation import AdapterSpec
from tests.remote.served import SUBJECTS

TORCH = TorchTensors()
TENSORS = {
    "float64": torch.randn(2, 3, dtype=torch.float64),
    "bfloat16": torch.randn(4).bfloat16(),
    "float16": torch.randn(3, 1).half(),
    "bool": torch.tensor([True, False]),
    "int64": torch.arange(4),
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(1.5),
    "nan": torch.tensor([float("nan"), -0.0, float("inf")]),
    "transposed": torch.randn(3, 4).T,
    "strided": torch.randn(3, 4, 2)[..., 0],
    "expanded": torch.randn(1, 3).expand(4, 3),
    "complex": torch.randn(3, dtype=torch.complex64),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_comes_back(name: str) -> None:
    """Its values bit for bit, its dtype, its strides."""
    sent = TENSORS[name]
    found = there_and_back(sent)
    assert found.dtype == sent.dtype
    assert found.stride() == sent.stride() or sent.is_contiguous()
    assert torch.equal(torch.view_as_real(found) if name == "complex" else found.nan_to_num(7.0),
                       torch.view_as_real(sent) if name == "complex" else sent.nan_to_num(7.0))  # fmt: skip


def there_and_back(tensor: torch.Tensor) -> torch.Tensor:
    """Through a pipe."""
    read, write = os.pipe()
    Channel(-1, write).send({"a": 1}, [TORCH.raw(tensor), TORCH.raw(torch.ones(1))])
    found = Channel(read, -1).receive()
    os.close(read)
    os.close(write)
    assert found is not None
    header, raws = found
    assert header["a"] == 1
    assert len(raws) == 2
    return TORCH.tensor(raws[0])


def test_the_payload_is_safetensors() -> None:
    """The library reads what is sent."""
    sent = [torch.arange(3), torch.randn(2, 2, dtype=torch.float64), torch.tensor([1, 2], dtype=torch.uint8)]
    found = safetensors.torch.load(pack([TORCH.raw(t) for t in sent]))
    assert all(torch.equal(found[str(i)], t) for i, t in enumerate(sent))


def test_what_cannot_be_sent_is_said() -> None:
    """Sparse and quantised tensors, dtypes that numpy lacks."""
    with pytest.raises(ValueError, match=r"a tensor of layout torch.sparse_coo cannot be sent"):
        TORCH.raw(torch.eye(2).to_sparse())
    with pytest.raises(ValueError, match=r"an array of dtype .* cannot be sent"):
        NumpyTensors().raw(np.array(["text"]))


def written(data: bytes) -> Channel:
    """A channel on which these bytes have come, and no more will."""
    read, write = os.pipe()
    os.write(write, data)
    os.close(write)
    return Channel(read, -1)


def frame(header: bytes, payload: bytes = b"", magic: bytes = b"AUDT") -> bytes:
    """A message's bytes."""
    return struct.pack("<4sIQ", magic, len(header), len(payload)) + header + payload


def table(text: bytes) -> bytes:
    """A payload without any entries' bytes."""
    return struct.pack("<Q", len(text)) + text


BAD = {
    "half a frame": (b"AUDT\x00", "half a message: the frame of a message ends after 5 of 16 bytes"),
    "no body": (frame(b"{}")[:16], "half a message: a message ends after 0 of 2 bytes"),
    "half a body": (frame(b'{"a": 1}')[:-3], "half a message: a message ends after 5 of 8 bytes"),
    "another magic": (frame(b"{}", magic=b"HTTP"), "expected a message"),
    "no JSON": (frame(b"{]"), "cannot be read"),
    "no object": (frame(b"[1]"), "the header is a list, expected an object"),
    "no text": (frame(b"\xff\xfe"), "cannot be read"),
    "deep JSON": (frame(b"[" * 20_000), "cannot be read"),
    "no safetensors": (frame(b"{}", b"\xff" * 40), "longer than the message"),
    "offsets": (
        frame(b"{}", table(b'{"0":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}')),
        "a tensor of shape",
    ),
    "unknown dtype": (
        frame(b"{}", table(b'{"0":{"dtype":"Q4","shape":[0],"data_offsets":[0,0]}}')),
        "cannot be read",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_message_is_refused(name: str) -> None:
    """In one sentence."""
    data, words = BAD[name]
    with pytest.raises(BadMessage, match=words):
        written(data).receive()


def test_the_end_is_no_error() -> None:
    """A connection that is closed between messages has ended."""
    assert written(b"").receive() is None


def test_strides_stay_inside() -> None:
    """A layout that reaches past its memory is refused."""
    with pytest.raises(ValueError, match=r"strides"):
        TORCH.tensor(worker.Raw("F32", (2,), b"\0" * 8, {"shape": [5], "stride": [1]}))


def test_another_protocol_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of another version is told from one that fails."""
    monkeypatch.setattr(process, "PROTOCOL", 2)
    command = Command(Path(sys.executable), SUBJECTS / "crashes.py", "Behaves")
    with pytest.raises(NoWorker, match=r"the worker speaks protocol 1, the audit 2"):
        process.start(command)


def test_every_message_fits_the_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a session sends and gets, both ways."""
    headers: list[dict] = []
    send, receive = Channel.send, Channel.receive

    def sending(self: Channel, header: dict, raws: list) -> None:
        headers.append(dict(header))
        send(self, header, raws)

    def receiving(self: Channel) -> object:
        found = receive(self)
        headers.append(found[0])
        return found

    monkeypatch.setattr(Channel, "send", sending)
    monkeypatch.setattr(Channel, "receive", receiving)
    subject = remote_subject(Command(Path(sys.executable), SUBJECTS / "crashes.py", "Behaves"))
    layer = subject.adapt(nn.Linear(3, 2), AdapterSpec("lora", rank=1))
    layer.module(torch.ones(2, 3, requires_grad=True)).sum().backward()
    layer.module.eval()
    layer.module(torch.ones(3, 2).T)
    layer.module.state_dict()
    with pytest.raises(BaseException, match=r"Behaves|merge"):
        subject.invoke("merge", layer)
    assert len(headers) > 10
    validator = jsonschema.Draft202012Validator(schema())
    for header in headers:
        errors = [e.message for e in validator.iter_errors(header)]
        assert not errors, (header, errors)
