"""Checkpoints with awkward names: which modules an adapter folder in PEFT's format is for, whatever they are called.

Each question is about one option or one kind of name. A folder counts against a library only where the plain folder
beside it, which has the same option on ordinary names, is read, saved and read again as it should be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.cases.layer_cases import Domain
from harness.compare.awkward_checkpoints import AwkwardCase, drawn, has, read_as_meant
from harness.compare.context import Context
from harness.engine.checks import check

ALL = 20  # more than a variant has of any topic: each is asked
ANOTHER = "the checkpoint runs as another model than the one that was saved"


def _on(topic: str, title: str) -> Callable[[Any], Any]:
    return check(
        "checkpoints",
        "critical",
        title=title,
        failure_mode=ANOTHER,
        domain=Domain(strategy=drawn(topic)),
        against=("paper",),
        applies=has(topic),
        examples=ALL,
        may_refuse=True,
        whole=True,
        diagnose=False,
    )


@_on("block_numbers", "layers_to_transform chooses other modules where a block has lists of its own")
def test_block_numbers(context: Context, case: AwkwardCase) -> None:
    """In a block that has lists of its own, such as experts, the block's number is the first one in a name."""
    read_as_meant(context, case)


@_on("layers_pattern", "layers_pattern chooses other modules where it is part of another list's name")
def test_layers_pattern(context: Context, case: AwkwardCase) -> None:
    """layers_pattern names a list of blocks by a whole part of its name: "layers" is not "prelayers"."""
    read_as_meant(context, case)


@_on("root_list", "layers_pattern does not find a list of blocks at the model's root")
def test_root_list(context: Context, case: AwkwardCase) -> None:
    """A list of blocks is found by layers_pattern where nothing stands before it in a name."""
    read_as_meant(context, case)


@_on("block_zero", "the choice of block 0 is refused or not kept")
def test_block_zero(context: Context, case: AwkwardCase) -> None:
    """The first block alone can be chosen by layers_to_transform, as a number and in a list, as any other."""
    read_as_meant(context, case)


@_on("own_patterns", "a rank and an alpha that stand under different keys are not both applied")
def test_own_patterns(context: Context, case: AwkwardCase) -> None:
    """A module whose rank stands under one key and its alpha under another gets both."""
    read_as_meant(context, case)


@_on("pattern_keys", "a key of rank_pattern or alpha_pattern is not applied to the modules that it says")
def test_pattern_keys(context: Context, case: AwkwardCase) -> None:
    """A key is an expression for a module's name or for its ending at a dot, behind ^ for all of it."""
    read_as_meant(context, case)


@_on("saved_names", "a module that is saved whole is lost where its name is part of another's")
def test_saved_names(context: Context, case: AwkwardCase) -> None:
    """A module that modules_to_save names is loaded and saved whole, its name part of another's or not."""
    read_as_meant(context, case)


@_on("odd_names", "a module is lost because of what it is called")
def test_odd_names(context: Context, case: AwkwardCase) -> None:
    """A module may have "weight", or the name of an adapter, in its name."""
    read_as_meant(context, case)


@_on("own_words", "a module is lost because it is called as a tensor of the method")
def test_own_words(context: Context, case: AwkwardCase) -> None:
    """A module of the base may be called as the file calls a tensor of the adapter."""
    read_as_meant(context, case)


@_on("many_targets", "an adapter with a long list of target modules is not loaded or saved as it is")
def test_many_targets(context: Context, case: AwkwardCase) -> None:
    """A list of two dozen names is for these modules, and for none whose name merely ends like one of them."""
    read_as_meant(context, case)
