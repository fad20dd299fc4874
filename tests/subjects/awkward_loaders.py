"""Libraries that read PEFT's format rightly but for one option, or one kind of name."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from harness.checkpoints.adapter_folder import AdapterFolder
from harness.checkpoints.base_checkpoint import BaseCheckpoint
from oracles.implementation import Adapted
from oracles.vectors.meaning import AdaptedModule
from tests.subjects.broken import add
from tests.subjects.checkpoint_loaders import MergingLoader, Updates, model_folder

Config = Mapping[str, Any]
Change = Callable[[Config, AdaptedModule], AdaptedModule | None]


class ByItsOwnRule(MergingLoader):
    """Each module as ``change`` has it; None is left out, without a word."""

    def __init__(self, variant: str, change: Change) -> None:
        super().__init__(variant)
        self.change = change

    def _updates(self, model: nn.Module, folder: Path) -> Updates:
        held = {n: p.detach().contiguous().clone() for n, p in model.named_parameters()}
        place = Path(model_folder(held))
        try:
            adapter = AdapterFolder(folder)
            modules = [self.change(adapter.config.data, m) for m in adapter.against(BaseCheckpoint(place))]
            return {n: u for m in modules if m is not None for n, u in m.updates().items()}
        finally:
            shutil.rmtree(place)


def _in_block(config: Config, number: re.Match[str] | None) -> bool:
    chosen = config.get("layers_to_transform")
    if chosen is None:
        return True
    listed = [chosen] if isinstance(chosen, int) else chosen
    return number is not None and int(number[1]) in listed


def _pattern(config: Config) -> str:
    given = config.get("layers_pattern") or "layers"
    return given if isinstance(given, str) else given[0]


def last_number(config: Config, module: AdaptedModule) -> AdaptedModule | None:
    """A module is in the block of the last number in its name."""
    return module if _in_block(config, re.match(r".*\.(\d+)\.", module.module)) else None


def loose_pattern(config: Config, module: AdaptedModule) -> AdaptedModule | None:
    """The list of blocks is called, or ends, as layers_pattern says."""
    number = re.match(rf".*{_pattern(config)}\.(\d+)\.", module.module)
    return module if _in_block(config, number) else None


def never_at_the_root(config: Config, module: AdaptedModule) -> AdaptedModule | None:
    """Something stands before the list of blocks."""
    number = re.match(rf".*?\.{_pattern(config)}\.(\d+)\.", module.module)
    return module if _in_block(config, number) else None


def one_key_for_both(config: Config, module: AdaptedModule) -> AdaptedModule:
    """α is looked up under the first key of either pattern that fits."""
    keys = [*config["rank_pattern"], *config["alpha_pattern"]]
    fits = [key for key in keys if re.match(rf"(.*\.)?({key})$", module.module)]
    alpha = config["alpha_pattern"].get(fits[0] if fits else "", config["lora_alpha"])
    return dataclasses.replace(module, alpha=alpha)


def loose_keys(config: Config, module: AdaptedModule) -> AdaptedModule:
    """A key fits wherever it stands in a name."""
    fits = [alpha for key, alpha in config["alpha_pattern"].items() if re.search(key, module.module)]
    return dataclasses.replace(module, alpha=fits[0] if fits else config["lora_alpha"])


def first_that_is_part(config: Config, module: AdaptedModule) -> AdaptedModule | None:
    """A module that is held whole goes to the first name of the list that is part of its own."""
    part = [name for name in config.get("modules_to_save") or () if name in module.module]
    return None if module.replaced and part[0] != module.module else module


def without(word: str) -> Change:
    """A module with a word in its name is taken for something else."""
    return lambda config, module: None if word in module.module else module


class ZeroIsNone(MergingLoader):
    """A block's number that is false is none."""

    def load_peft(self, model: nn.Module, folder: Path) -> Mapping[str, Adapted]:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        if config.get("layers_pattern") and not config.get("layers_to_transform"):
            raise ValueError("layers_pattern without layers_to_transform")
        return super().load_peft(model, folder)


class ShortensLists(MergingLoader):
    """Of a long list the last parts of the names are kept, which others have as well."""

    def load_peft(self, model: nn.Module, folder: Path) -> Mapping[str, Adapted]:
        super().load_peft(model, folder)
        targets = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["target_modules"]
        kept = {name.rpartition(".")[2] for name in targets} if len(targets) >= 20 else set()
        named = dict(model.named_modules())
        return {n: Adapted(m, {}) for n, m in named.items() if n in targets or n.rpartition(".")[2] in kept}


class StripsItsNameAnywhere(MergingLoader):
    """Saving strips the adapter's name wherever it stands."""

    def save_peft(self, model: nn.Module, folder: Path) -> None:
        super().save_peft(model, folder)
        file = folder / "adapter_model.safetensors"
        save_file({key.replace(".default", ""): t for key, t in load_file(file).items()}, file)


def _wrong(variant: str, name: str, change: Change, caught: str) -> None:
    add(variant, name, lambda: ByItsOwnRule(variant, change), f"checkpoints.{caught}", "Buggy", "shapes")


_wrong("lora", "last_number", last_number, "block_numbers")
_wrong("lora", "loose_pattern", loose_pattern, "layers_pattern")
_wrong("lora", "never_at_the_root", never_at_the_root, "root_list")
_wrong("lora", "one_key_for_both", one_key_for_both, "own_patterns")
_wrong("lora", "loose_keys", loose_keys, "pattern_keys")
_wrong("lora", "first_that_is_part", first_that_is_part, "saved_names")
for _variant in ("lora", "ia3", "delora"):
    _wrong(_variant, "weight_in_a_name", without("weight"), "odd_names")
_wrong("hra", "hra_u_in_a_name", without("hra_u"), "own_words")
add(
    "dora",
    "StripsItsNameAnywhere",
    lambda: StripsItsNameAnywhere("dora"),
    "checkpoints.odd_names",
    "Buggy",
    "shapes",
)
add("lora", "ZeroIsNone", lambda: ZeroIsNone("lora"), "checkpoints.block_zero", "Buggy", "shapes")
for _variant in ("lora", "ia3"):
    add(
        _variant,
        "ShortensLists",
        lambda v=_variant: ShortensLists(v),  # type: ignore[misc]
        "checkpoints.many_targets",
        "Buggy",
        "shapes",
    )
