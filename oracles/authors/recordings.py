"""Read the recordings of the authors' code; a changed file, manifest or pin is refused by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from oracles.authors.recorded_case import RecordedCase
from oracles.implementation import AdapterSpec
from refs.errors import NotAvailableError, RefsError

__all__ = [
    "ManifestChangedError",
    "RecordingChangedError",
    "StaleRecordingError",
    "folder",
    "made_with",
    "read",
    "seal",
]

ROOT = Path(__file__).resolve().parents[2] / "refs" / "recordings"
SCHEMA = 1
INPUTS = ("weight", "bias", "x", "cotangent")


class ManifestChangedError(RefsError):
    """The manifest is not what the recorder wrote."""


class RecordingChangedError(RefsError):
    """The tensors are not the ones the manifest describes."""


class StaleRecordingError(RefsError):
    """The recording is of another file than the catalogue pins."""


def folder(variant: str, oracle: str, root: Path | None = None) -> Path:
    """Where the recording of one oracle lies."""
    return (root or ROOT) / f"{variant}-{oracle}"


def read(where: Path, provenance: Mapping[str, str]) -> list[RecordedCase]:
    """The recorded cases in ``where``, whose manifest must name ``provenance``.

    Raises NotAvailableError (no recording), ManifestChangedError, RecordingChangedError, StaleRecordingError.
    """
    manifest = _manifest(where)
    for key, pinned in provenance.items():
        if manifest["provenance"].get(key) != pinned:
            said = manifest["provenance"].get(key)
            raise StaleRecordingError(f"the recording {where.name} is of {key} {said}; {pinned} is pinned")
    tensors = _tensors(where, manifest)
    try:
        return [_case(entry, manifest["oracle"], tensors) for entry in manifest["cases"]]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        said = str(error)[:200]
        raise RecordingChangedError(f"the recording {where.name} lacks {said}, or has it wrong") from None


def made_with(where: Path) -> str:
    """What the recording in ``where`` was made with, in words. Raises as :func:`read`."""
    return f"with torch {_manifest(where)['versions']['torch'].partition('+')[0]}"


def seal(manifest: Mapping[str, Any]) -> str:
    """The sha256 of a manifest without its own seal."""
    body = {key: value for key, value in manifest.items() if key != "seal"}
    return hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def entry(case: RecordedCase) -> dict[str, Any]:
    """One case as the manifest lists it."""
    return {
        "id": case.id,
        "spec": asdict(case.spec),
        "initial": case.initial,
        "bias": case.bias is not None,
        "parameters": list(case.parameters),
        "expected": list(case.expected),
        "state": {key: list(shape) for key, shape in case.state.items()},
    }


def tensors_of(case: RecordedCase) -> dict[str, Tensor]:
    """One case's tensors by the name they have in the file."""
    inputs = {name: getattr(case, name) for name in INPUTS if getattr(case, name) is not None}
    named = {**inputs, **{f"at.{n}": t for n, t in case.parameters.items()}}
    named |= {f"expect.{n}": t for n, t in case.expected.items()}
    return {f"{case.id}/{name}": tensor.contiguous() for name, tensor in named.items()}


def _manifest(where: Path) -> dict[str, Any]:
    path = where / "manifest.json"
    if not path.is_file():
        raise NotAvailableError(f"there is no recording {where.name}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["seal"] != seal(manifest):
            raise ManifestChangedError(f"the manifest of the recording {where.name} was changed")
        if manifest["schema"] != SCHEMA:
            raise ManifestChangedError(
                f"the recording {where.name} has schema {manifest['schema']}, not {SCHEMA}"
            )
        if not isinstance(manifest["provenance"], dict) or not isinstance(manifest["cases"], list):
            raise ManifestChangedError(
                f"the manifest of the recording {where.name} has a part of another kind"
            )
        return manifest
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ManifestChangedError(f"the manifest of the recording {where.name} cannot be read") from None


def _tensors(where: Path, manifest: Mapping[str, Any]) -> dict[str, Tensor]:
    path = where / "cases.safetensors"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecordingChangedError(f"the recording {where.name} cannot be read: {error.strerror}") from None
    if hashlib.sha256(data).hexdigest() != manifest.get("tensors_sha256"):
        raise RecordingChangedError(f"the tensors of the recording {where.name} were changed: another sha256")
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise RecordingChangedError(
            f"the recording {where.name} is not a safetensors file: {error}"
        ) from None


def _case(item: Mapping[str, Any], oracle: str, tensors: Mapping[str, Tensor]) -> RecordedCase:
    def get(name: str) -> Tensor:
        return tensors[f"{item['id']}/{name}"]

    return RecordedCase(
        id=item["id"],
        oracle=oracle,
        spec=AdapterSpec(**item["spec"]),
        initial=item["initial"],
        weight=get("weight"),
        bias=get("bias") if item["bias"] else None,
        x=get("x"),
        cotangent=get("cotangent"),
        parameters={name: get(f"at.{name}") for name in item["parameters"]},
        expected={name: get(f"expect.{name}") for name in item["expected"]},
        state={key: tuple(shape) for key, shape in item["state"].items()},
    )


def versions() -> dict[str, str]:
    """What else the numbers depend on."""
    return {"torch": str(torch.__version__)}
