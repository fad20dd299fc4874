"""`--subject peft@X.Y.Z`, or `peft@X.Y.Z+lora_bias`: a release from the registry, with an option of its own on."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from harness.subjects.remote.environment import Metadata

FILE = Path(__file__).with_name("peft_release.py")
RELEASE = re.compile(r"peft@(?P<release>\d+(?:\.\d+)+)(?:\+(?P<option>\w+))?")
OPTIONS = {None: "Peft", "lora_bias": "WithLoraBias"}  # option -> the class in FILE that has it on
# Releases back to 0.4 run with the first; from 0.21 on, with what the audit itself runs with.
OLD = ("transformers==4.57.1", "accelerate==1.2.1", "huggingface_hub==0.36.2")
NEW = ("transformers>=5,<6",)
FIRST_NEW = (0, 21)


def class_of(ref: str) -> str | None:
    """The class in FILE for a reference to a release; None for any other reference. Raises ValueError."""
    found = RELEASE.fullmatch(ref)
    if found is None:
        return None
    if found["option"] not in OPTIONS:
        known = ", ".join(filter(None, OPTIONS))
        raise ValueError(f"--subject {ref!r}: there is no option {found['option']!r}; expected {known}")
    return OPTIONS[found["option"]]


def metadata_of(ref: str) -> Metadata:
    """What the release of a reference is to be installed with."""
    found = RELEASE.fullmatch(ref)
    assert found is not None
    numbers = tuple(int(part) for part in found["release"].split("."))
    # The audit's own torch: releases then differ in what is PEFT's, and their environments share its files.
    own = torch.__version__.partition("+")[0]
    return Metadata((f"peft=={found['release']}", f"torch=={own}", *(NEW if numbers >= FIRST_NEW else OLD)))
