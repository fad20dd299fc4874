"""A library that reads PEFT's format by merging it into the model, and the same with one thing read wrongly."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from harness.checkpoints.adapter_folder import AdapterFolder
from harness.checkpoints.base_checkpoint import BaseCheckpoint
from oracles.implementation import Adapted
from oracles.vectors.meaning import AdaptedModule
from oracles.vectors.readings import wrong_readings
from oracles.vectors.unreadable import Unreadable
from oracles.vectors.update import Update
from tests.subjects import functional
from tests.subjects.broken import add

Updates = dict[str, Update]
Read = Callable[[AdaptedModule], Updates]


def right(module: AdaptedModule) -> Updates:
    """What the file means."""
    return module.updates()


def misread(reading: str) -> Read:
    """One wrong reading, wherever a module can be read so."""

    def read(module: AdaptedModule) -> Updates:
        found = module.updates()
        for wrong in wrong_readings(module):
            if wrong.id == reading:
                found |= wrong.updates
        return found

    return read


class MergingLoader(functional.Library):
    """``load_peft`` writes the merged weights into the model; the folder is what ``save_peft`` gives back."""

    def __init__(self, variant: str, read: Read = right, lenient: bool = False) -> None:
        super().__init__({variant: functional.METHODS[variant]})
        self.read, self.lenient = read, lenient

    def load_peft(self, model: nn.Module, folder: Path) -> Mapping[str, Adapted]:
        """Merge the folder into the model in place; raises Unreadable."""
        try:
            updates = self._updates(model, folder)
        except Unreadable:
            if not self.lenient:
                raise
            return {}
        with torch.no_grad():
            for name, update in updates.items():
                module, _, tensor = name.rpartition(".")
                self._set(model, module, tensor, update.apply(model.get_parameter(name)).float())
        object.__setattr__(model, "_folder", folder)
        return {}

    def _set(self, model: nn.Module, module: str, tensor: str, value: Tensor) -> None:
        """A parameter of its own: what was tied is not tied any more."""
        setattr(model.get_submodule(module), tensor, nn.Parameter(value))

    def _updates(self, model: nn.Module, folder: Path) -> Updates:
        held = {n: p.detach().contiguous().clone() for n, p in model.named_parameters(remove_duplicate=False)}
        place = Path(model_folder(held))
        try:
            checkpoint = BaseCheckpoint(place)
            adapter = AdapterFolder(folder)
            return {n: u for m in adapter.against(checkpoint) for n, u in self.read(m).items()}
        finally:
            shutil.rmtree(place)

    def save_peft(self, model: nn.Module, folder: Path) -> None:
        """The folder that was read."""
        shutil.copytree(vars(model)["_folder"], folder)

    def merge_model(self, model: nn.Module) -> nn.Module:
        """Merged it is already."""
        return model


def model_folder(tensors: Mapping[str, Tensor]) -> str:
    """A temporary folder with these tensors as a checkpoint."""
    place = tempfile.mkdtemp(prefix="audit-")
    save_file(dict(tensors), Path(place) / "model.safetensors")
    return place


class TiedInPlace(MergingLoader):
    """Writes into the parameter, so that a tied one changes too."""

    def _set(self, model: nn.Module, module: str, tensor: str, value: Tensor) -> None:
        model.get_submodule(module).get_parameter(tensor).data.copy_(value)


class ForgetsAlphaWhenSaving(MergingLoader):
    """The saved configuration has another alpha."""

    def save_peft(self, model: nn.Module, folder: Path) -> None:
        super().save_peft(model, folder)
        config = folder / "adapter_config.json"
        config.write_text(config.read_text().replace('"lora_alpha": 7', '"lora_alpha": 3'))


class MergesTwice(MergingLoader):
    """``merge_model`` merges what is merged."""

    def merge_model(self, model: nn.Module) -> nn.Module:
        self.load_peft(model, vars(model)["_folder"])
        return model


def _misreader(variant: str, reading: str, caught: str) -> None:
    name = f"reads_{reading.replace('.', '_')}"
    add(variant, name, lambda: MergingLoader(variant, misread(reading)), caught, "Buggy", "shapes")


_misreader("lora", "scale.over_root_rank", "checkpoints.scale checkpoints.dtypes checkpoints.names")
_misreader("lora", "pattern.rank", "checkpoints.scale")
_misreader("lora", "pattern.alpha", "checkpoints.scale")
_misreader("lora", "layout.channels_last", "checkpoints.layouts")
_misreader("lora", "experts.B_blocks", "checkpoints.layouts")
_misreader("lora", "layout.transposed", "checkpoints.layouts")
_misreader("lora", "bias.unscaled", "checkpoints.whole_tensors")
_misreader("lora", "saved.left_out", "checkpoints.whole_tensors")
_misreader("dora", "dora.norm_of_base", "checkpoints.equation checkpoints.dtypes checkpoints.merged")
_misreader("dora", "dora.bias_scaled", "checkpoints.whole_tensors")
_misreader("pissa", "pissa.no_residual", "checkpoints.equation checkpoints.scale")
_misreader("ia3", "ia3.bias_not_gated", "checkpoints.whole_tensors")
_misreader("hra", "hra.reversed", "checkpoints.equation")
_misreader("delora", "delora.config_lambda", "checkpoints.equation")
for _variant in ("lora", "dora", "ia3", "hra", "delora"):
    add(
        _variant,
        "takes_any_folder",
        lambda v=_variant: MergingLoader(v, lenient=True),  # type: ignore[misc]
        "checkpoints.refused",
        "Partial",
        "shapes",
    )
add("lora", "TiedInPlace", lambda: TiedInPlace("lora"), "checkpoints.whole_tensors", "Buggy", "shapes")
add("lora", "MergesTwice", lambda: MergesTwice("lora"), "checkpoints.merged", "Buggy", "shapes")
add(
    "lora",
    "ForgetsAlphaWhenSaving",
    lambda: ForgetsAlphaWhenSaving("lora"),
    "checkpoints.written",
    "Partial",
    "shapes",
)
