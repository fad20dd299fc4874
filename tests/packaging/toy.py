"""A toy repository with a library, its subject and, on request, a planted bug; the command as if installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "packaging" / "adapter_conformance"
LIBRARY = '''"""A LoRA in a few lines."""

import torch
from torch import nn

__version__ = "0.3.0"


class LoRALinear(nn.Module):
    """y = x Wᵀ + b + (alpha / r) x Aᵀ Bᵀ, with A uniform in ±1/sqrt(in) and B zero."""

    def __init__(self, base, r, alpha):
        super().__init__()
        self.base = base.requires_grad_(False)
        bound = base.in_features**-0.5
        wide = torch.promote_types(base.weight.dtype, torch.float32)
        self.down = nn.Parameter(torch.empty(base.in_features, r, dtype=wide).uniform_(-bound, bound))
        self.up = nn.Parameter(torch.zeros(base.out_features, r, dtype=wide))
        self.scale = alpha / r
        self.train(base.training)

    def forward(self, x):
        """The base's output and the adapter's."""
        y = self.base(x)
        return y + (self.scale * (x.to(self.down.dtype) @ self.down @ self.up.T)).to(y.dtype)
'''
RIGHT, WRONG = "alpha / r\n", "alpha / r**0.5\n"
LAYER = "toylora.LoRALinear(base, spec.rank, spec.alpha)"
SUBJECT = f'''from adapter_conformance import Adapted, Implementation, Slot
import toylora


class Toy(Implementation):
    """The toy."""

    name, version, variants = "toylora", toylora.__version__, frozenset({{"lora"}})

    def adapt(self, base, spec):
        layer = {LAYER}
        return Adapted(layer, {{"A": Slot(layer.down, lambda t: t.T), "B": Slot(layer.up)}})

    def source(self, variant, aspect):
        return toylora.__file__, "LoRALinear.forward"
'''


def repository(folder: Path, *, wrong: bool = False) -> Path:
    """The library and its subject in a folder that git would call a repository."""
    (folder / ".git").mkdir(parents=True)
    (folder / "toylora.py").write_text(LIBRARY.replace(RIGHT, WRONG) if wrong else LIBRARY)
    (folder / "subject.py").write_text(SUBJECT)
    return folder


def environment(folder: Path) -> dict[str, str]:
    """`adapter-conformance` on the PATH, from the checkout; `python` is this interpreter."""
    (folder / "bin").mkdir()
    for name, words in (("adapter-conformance", "-m adapter_conformance "), ("python", "")):
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\\nexec "{sys.executable}" {words}"$@"\\n'.replace("\\n", "\n"))
        script.chmod(0o755)
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(PACKAGE)}
