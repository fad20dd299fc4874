"""Adapter folders whose names and options readers have tripped over; written when they are asked, not committed.

Each comes with a plain one, which has the same option on ordinary names: who cannot read that either has no trouble
with names. What they mean is what PEFT's documentation says of the options: an entry of ``target_modules`` is a whole
name or an ending of one at a dot; the number of a block is the first one behind the list of blocks, which
``layers_pattern`` names; a key of ``rank_pattern`` or ``alpha_pattern`` is a regular expression for a name or for an
ending of one at a dot, and each of the two is looked up by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oracles.vectors.bases import chain_of, linear
from oracles.vectors.chain import Config
from oracles.vectors.draft import Draft, saved
from oracles.vectors.faults import NAMES, PATTERN, SAVED
from oracles.vectors.lora import METHOD, lora
from oracles.vectors.methods import modules as method_files


@dataclass(frozen=True)
class Awkward:
    """A folder, and the plain one beside it."""

    draft: Draft
    plain: Draft


def base_of(name: str, modules: Sequence[str]) -> Config:
    """A chain of linear layers of these names, by turns 5 to 7 and 7 to 5; every other one has a bias."""
    layers = [linear(m, *((7, 5) if i % 2 else (5, 7)), bias=i % 4 < 2) for i, m in enumerate(modules)]
    return chain_of(name, layers, [2, 5])


def _draft(name: str, base: Config, source: str = NAMES) -> Draft:
    return Draft(name, base["name"], source, described=base, without_readings=True)


def _chosen(name: str, base: Config, modules: Sequence[str], targets: Sequence[str], **more: Any) -> Draft:
    """LoRA on some of the modules that the targets name."""
    return lora(_draft(name, base), modules, 2, 5.0, targets=list(targets), **more)


def _names(base: Config) -> list[str]:
    return [layer["name"] for layer in base["layers"] if "name" in layer]


def _starting(base: Config, *starts: str) -> list[str]:
    return [name for name in _names(base) if name.startswith(starts)]


# Blocks

LISTS = base_of("lists", [f"model.layers.{i}.{n}" for i in (0, 1, 2) for n in ("q_proj", "o_proj")])
PLAIN_BLOCKS = ("model.layers.1.",)


def _plain_blocks(name: str, **more: Any) -> Draft:
    chosen = {"layers_to_transform": [1], **more}
    return _chosen(f"plain.{name}", LISTS, _starting(LISTS, *PLAIN_BLOCKS), ["q_proj", "o_proj"], **chosen)


def _block_numbers() -> Iterator[Awkward]:
    """A block with lists of its own inside: the block's number is the first one, not the last."""
    experts = [f"model.layers.{i}.mlp.experts.{e}.w1" for i in (0, 1, 2) for e in (0, 1)]
    mixture = base_of("mixture", experts)
    inner = [f"model.layers.{i}.adapter.layers.{e}.w1" for i in (0, 1) for e in (0, 1, 2)]
    nested = base_of("nested", inner)
    plain = _plain_blocks("block_numbers")
    for name, base, chosen, more in (
        ("expert_of_that_number", mixture, 1, {"layers_to_transform": [1]}),
        ("as_a_number", mixture, 1, {"layers_to_transform": 1}),
        ("no_expert_of_that_number", mixture, 2, {"layers_to_transform": [2]}),
        ("list_of_the_same_name", nested, 1, {"layers_to_transform": [1], "layers_pattern": "layers"}),
    ):
        modules = _starting(base, f"model.layers.{chosen}.")
        draft = _chosen(f"block_numbers.{name}", base, modules, ["w1"], **more)
        yield Awkward(draft, plain)


def _layers_pattern() -> Iterator[Awkward]:
    """layers_pattern is a whole part of a name."""
    within = [f"model.layers.{i}.prelayers.{j}.q_proj" for i in (0, 1) for j in (0, 1, 2)]
    beside = [f"model.{n}.{i}.q_proj" for n in ("layers", "sublayers", "layers_norm") for i in (0, 1)]
    plain = _plain_blocks("layers_pattern", layers_pattern="layers")
    for name, modules in (("part_of_a_name_within", within), ("part_of_a_name_beside", beside)):
        base = base_of(name, modules)
        more = {"layers_to_transform": [1], "layers_pattern": "layers"}
        draft = _chosen(f"layers_pattern.{name}", base, _starting(base, *PLAIN_BLOCKS), ["q_proj"], **more)
        yield Awkward(draft, plain)


def _root_list() -> Iterator[Awkward]:
    """The list of blocks lies at the model's root."""
    root = base_of("root", [f"layers.{i}.{n}" for i in (0, 1, 2) for n in ("q_proj", "o_proj")])
    both = base_of("root_and_below", [f"{n}layers.{i}.q_proj" for n in ("", "decoder.") for i in (0, 1, 2)])
    plain = _plain_blocks("root_list", layers_pattern="layers")
    for name, base, starts in (
        ("alone", root, ("layers.1.",)),
        ("and_below", both, ("layers.1.", "decoder.layers.1.")),
    ):
        more = {"layers_to_transform": [1], "layers_pattern": "layers"}
        draft = _chosen(f"root_list.{name}", base, _starting(base, *starts), ["q_proj"], **more)
        draft = draft if base is both else _chosen(draft.id, base, ["layers.1.q_proj"], ["q_proj"], **more)
        yield Awkward(draft, plain)


def _block_zero() -> Iterator[Awkward]:
    """The first block alone."""
    plain = _plain_blocks("block_zero", layers_to_transform=1, layers_pattern="layers")
    for name, more in (
        ("number_and_pattern", {"layers_to_transform": 0, "layers_pattern": "layers"}),
        ("number", {"layers_to_transform": 0}),
        ("list_and_pattern", {"layers_to_transform": [0], "layers_pattern": ["layers"]}),
        ("list", {"layers_to_transform": [0]}),
    ):
        modules = _starting(LISTS, "model.layers.0.")
        draft = _chosen(f"block_zero.{name}", LISTS, modules, ["q_proj", "o_proj"], **more)
        yield Awkward(draft, plain)


# Ranks and alphas of single modules


def _ranked(name: str, base: Config, ranks: Mapping[str, int], alphas: Mapping[str, float]) -> Draft:
    return lora(_draft(name, base, PATTERN), _names(base), 3, 7.0, ranks=ranks, alphas=alphas)


def _own_patterns() -> Iterator[Awkward]:
    """A module's rank by one key, its alpha by another."""
    q, last = "q_proj", r"layers.2.q_proj"
    plain = _ranked("plain.own_patterns", LISTS, {q: 5}, {q: 2.0})
    for name, ranks, alphas in (
        ("alpha_of_one_module", {q: 5}, {last: 2.0}),
        ("rank_of_one_module", {last: 5}, {q: 2.0}),
        ("other_keys_first", {"o_proj": 2, q: 5}, {last: 30.0, q: 2.0}),
    ):
        draft = _ranked(f"own_patterns.{name}", LISTS, ranks, alphas)
        yield Awkward(draft, plain)


def _pattern_keys() -> Iterator[Awkward]:
    """A key means whole parts of a name, from its end; with ^ all of it."""
    modules = ["proj", "q_proj", "encoder.proj", "encoder.proj_out", "encoder.1.proj", "encoder.11.proj"]
    base = base_of("keys", modules)
    plain = _ranked("plain.pattern_keys", base, {"q_proj": 5}, {"proj_out": 2.0})
    for name, ranks, alphas in (
        ("part_of_a_name", {"proj": 5}, {"proj": 2.0}),
        ("from_the_root", {r"^proj": 5}, {r"^encoder\.proj": 2.0}),
        ("with_dots", {r"encoder\.1\.proj": 5}, {r"1\.proj": 2.0}),
        ("either", {r"q_proj|proj_out": 5}, {r"proj_out|q_proj": 2.0}),
    ):
        yield Awkward(_ranked(f"pattern_keys.{name}", base, ranks, alphas), plain)


# Names


HEADS = ["head", "head_1", "head_1_a", "head_1_a_x"]
NORMS = ["norm", "out_norm", "my_out_norm", "in_my_out_norm"]


def _saved_names() -> Iterator[Awkward]:
    """Modules that the file holds whole, each one's name part of the next one's."""
    base = base_of("heads", ["layers.0.q_proj", *HEADS, *NORMS, "score"])
    plain = _holding("plain.saved_names", base, [NORMS[-1], "score"])
    for name, modules in (("beginnings", HEADS), ("endings", NORMS)):
        yield Awkward(_holding(f"saved_names.{name}", base, modules), plain)
        yield Awkward(_holding(f"saved_names.{name}_longest_first", base, modules[::-1]), plain)


def _holding(name: str, base: Config, modules: Sequence[str]) -> Draft:
    """LoRA on the base's first module; these ones whole."""
    draft = lora(_draft(name, base, SAVED), _names(base)[:1], 3, 7.0, modules_to_save=list(modules))
    for module in modules:
        saved(draft, module)
    return draft


def _named(topic: str, modules_of: Callable[[str], Mapping[str, list[str]]]) -> Iterator[Awkward]:
    """For each method the modules that ``modules_of`` its word gives, beside ordinary ones."""
    ordinary = base_of("ordinary", ["encoder.q_proj", "encoder.o_proj"])
    for method in method_files():
        plain = method.SAMPLE(_draft(f"plain.{topic}.{method.METHOD.id}", ordinary), _names(ordinary))
        for name, modules in modules_of(method.WORD).items():
            base = base_of(f"{topic}_{name}_{method.METHOD.id}", [*modules, *_names(ordinary)])
            draft = _draft(f"{topic}.{name}.{method.METHOD.id}", base)
            yield Awkward(method.SAMPLE(draft, modules), plain)


def _odd_names() -> Iterator[Awkward]:
    """Modules with a tensor's name in theirs, or the name that an adapter has."""
    modules = {
        "weight": ["weight_net.q_proj", "net.weighted_proj"],
        "adapter": ["net.default.q_proj", "net.o_default"],
    }
    yield from _named("odd_names", lambda word: modules)


def _own_words() -> Iterator[Awkward]:
    """Modules that are called as the method calls a tensor of its own."""
    yield from _named("own_words", lambda word: {"tensor": [f"net.{word}.q_proj", f"net.{word}_proj"]})
    base = base_of("own_words_saved", ["encoder.q_proj", "encoder.o_proj", "lora_head", "score"])
    plain = _holding("plain.own_words.saved", base, ["score"])
    yield Awkward(_holding("own_words.saved", base, ["lora_head"]), plain)


def _many_targets() -> Iterator[Awkward]:
    """A long list of full names; two are, but for the dot, the endings of others, or the last parts would do."""
    modules = [f"blocks.{i}.{n}" for i in range(11) for n in ("q", "k")]
    bases = {"alike": ["sub_blocks.0.q", "sub_blocks.1.k"], "apart": ["head", "tail"]}
    for name, others in bases.items():
        base = base_of(f"many_{name}", [*modules, *others])
        for method in method_files():
            plain = method.SAMPLE(_draft(f"plain.many_targets.{name}.{method.METHOD.id}", base), modules[:3])
            draft = _draft(f"many_targets.{name}.{method.METHOD.id}", base)
            yield Awkward(method.SAMPLE(draft, modules), plain)


TOPICS: Mapping[str, Callable[[], Iterator[Awkward]]] = {
    "block_numbers": _block_numbers,
    "layers_pattern": _layers_pattern,
    "root_list": _root_list,
    "block_zero": _block_zero,
    "own_patterns": _own_patterns,
    "pattern_keys": _pattern_keys,
    "saved_names": _saved_names,
    "odd_names": _odd_names,
    "own_words": _own_words,
    "many_targets": _many_targets,
}
FOR_ALL = ("odd_names", "own_words", "many_targets")


def methods_of(topic: str) -> frozenset[str]:
    """The methods that have folders of a topic."""
    return frozenset(m.METHOD.id for m in method_files()) if topic in FOR_ALL else frozenset({METHOD.id})
