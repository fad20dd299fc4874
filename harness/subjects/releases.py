"""`--subject peft@X.Y.Z`: a release from the registry, and the search for the release that changed something."""

from __future__ import annotations

import re
from pathlib import Path

from harness.subjects.remote.environment import Metadata

FILE = Path(__file__).with_name("peft_release.py")
RELEASE = re.compile(r"peft@(\d+(?:\.\d+)+)")
# Releases back to 0.4 run with the first; from 0.21 on, with what the audit itself runs with.
OLD = ("transformers==4.57.1", "accelerate==1.2.1", "huggingface_hub==0.36.2")
NEW = ("transformers>=5,<6",)
FIRST_NEW = (0, 21)


def file_of(ref: str) -> Path | None:
    """The subject's file for a reference to a release; None for any other reference."""
    return FILE if RELEASE.fullmatch(ref) else None


def metadata_of(ref: str) -> Metadata:
    """What the release of a reference is to be installed with."""
    found = RELEASE.fullmatch(ref)
    assert found is not None
    numbers = tuple(int(part) for part in found[1].split("."))
    return Metadata((f"peft=={found[1]}", "torch", *(NEW if numbers >= FIRST_NEW else OLD)))
