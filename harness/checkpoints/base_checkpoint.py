"""A base or merged model's checkpoint: its tensors, and which of them are one tensor under two names."""

from __future__ import annotations

from pathlib import Path

from harness.checkpoints.tensor_folder import TensorFolder, read_json

EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "shared.weight")


class BaseCheckpoint:
    """The tensors of a whole model."""

    def __init__(self, folder: Path) -> None:
        """Raises Unreadable."""
        self.tensors = TensorFolder(folder)
        config = folder / "config.json"
        self.config = read_json(config) if config.is_file() else {}
        self.ties = self._ties()

    def _ties(self) -> dict[str, str]:
        """A name that the files lack -> the tensor that it stands for."""
        listed = self.config.get("tied")
        if isinstance(listed, dict):
            return {str(new): str(old) for new, old in listed.items()}
        if not self.config.get("tie_word_embeddings"):
            return {}
        found = [name for name in self.tensors.names if name.endswith(EMBEDDINGS)]
        head = [name for name in self.tensors.names if name.endswith("lm_head.weight")]
        return {"lm_head.weight": found[0]} if len(found) == 1 and not head else {}

    def stored(self, name: str) -> str | None:
        """Under which name the files hold a tensor; None where they do not."""
        if name in self.tensors:
            return name
        old = self.ties.get(name)
        return old if old is not None and old in self.tensors else None

    @property
    def names(self) -> list[str]:
        """Every tensor under every name."""
        return sorted({*self.tensors.names, *(n for n in self.ties if self.stored(n))})

    @property
    def modules(self) -> dict[str, tuple[int, ...]]:
        """Modules that a weight of two or more dimensions makes adaptable, and its shape."""
        found: dict[str, tuple[int, ...]] = {}
        for name in self.names:
            module, _, tensor = name.rpartition(".")
            stored = self.stored(name)
            if tensor == "weight" and stored and len(self.tensors.shape(stored)) > 1:
                found[module] = self.tensors.shape(stored)
        return found
