"""The same forty faults in three libraries that are built differently: where each is planted.

loralib: a subclass of nn.Linear that folds itself in when it is evaluated. torchtune: a module of its own with two
linear layers, merged as a dict of tensors. PEFT: a wrapper around the base layer with dicts of adapters. A fault that a
library has no place for, or in which it would change nothing, has a sentence instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tests.planted.places import Place


@dataclass(frozen=True)
class Library:
    """``ref``: its subject; ``requires``: what it is installed with; ``places``: fault -> where, or why nowhere.

    ``apart``: what a library that is a reference of the audit is installed with where it is asked in a process of its
    own: the fault is planted there alone.
    """

    name: str
    ref: str
    requires: tuple[str, ...]
    places: Mapping[str, tuple[Place, ...] | str]
    apart: tuple[str, ...] = ()


COARSE = "(lambda t: t.bfloat16().to(t.dtype)){0}"
MIXED = "(lambda t: t - t.mean(dim=0, keepdim=True)){0}"
NORMALISED = "__import__('torch').nn.functional.normalize({0}, dim=-1)"
NORMAL = "{func}({arg0})".replace("{func}", "__import__('torch').nn.init.normal_")
ZEROS = "__import__('torch').nn.init.zeros_({arg0})"
NARROW = "__import__('torch').nn.init.normal_({arg0}, std=0.02)"
WIDE = "__import__('torch').nn.init.kaiming_uniform_({arg0}, a=0)"
SEED = "__import__('torch').manual_seed(0)"
NO_B = "{{k: v for k, v in {0}.items() if 'lora_B' not in k and 'lora_b' not in k}}"
HALF = "{{k: v.half() for k, v in {0}.items()}}"
ALWAYS = (
    "type('Always', (nn.Module,), {{'rate': %s, "
    "'forward': lambda own, t: nn.functional.dropout(t, own.rate, True)}})()"
)


def _scales(file: str, symbol: str, find: str, nth: int = 0) -> dict[str, tuple[Place, ...]]:
    ways = {
        "one": "1.0",
        "alpha": "{left}",
        "root": "{left} / {right} ** 0.5",
        "inverted": "{right} / {left}",
    }
    return {f"scale.{name}": (Place(file, symbol, find, by, nth),) for name, by in ways.items()}


def _branch(file: str, symbol: str, drop: str, held: str) -> dict[str, tuple[Place, ...]]:
    """What happens to the input of the update, whose dropout is the call ``drop``, of the layer ``held``."""
    by = {
        "forward.x_cut": "{0}.detach()",
        "forward.normalised": NORMALISED,
        "forward.coarse": COARSE,
        "forward.rows_mixed": MIXED,
        "dropout.none": "{arg0}",
        "dropout.not_rescaled": f"{{0}} * (1 - getattr({held}, 'p', 0.0)) if self.training else {{0}}",
    }
    return {name: (Place(file, symbol, f"call {drop}", text),) for name, text in by.items()}


LAYERS, UTILS = "loralib/layers.py", "loralib/utils.py"
FORWARD, INIT, TRAIN = "Linear.forward", "Linear.__init__", "Linear.train"
RESET, COMMON = "Linear.reset_parameters", "LoRALayer.__init__"
LORALIB = Library(
    "loralib",
    "harness/subjects/loralib.py:Loralib",
    ("loralib==0.1.2", "torch==2.13.0", "numpy"),
    {
        **_scales(LAYERS, INIT, "assign scaling"),
        "scale.twice": (Place(LAYERS, FORWARD, "attr scaling", "{0} * {0}"),),
        "scale.not_merged": (
            Place(LAYERS, TRAIN, "attr scaling", "1.0", 1),
            Place(LAYERS, TRAIN, "attr scaling", "1.0"),
        ),
        "forward.subtracted": (Place(LAYERS, FORWARD, "aug result", "{target} -= {value}"),),
        "forward.bias_lost": (Place(LAYERS, FORWARD, "attr bias", "None"),),
        "forward.bias_twice": (
            Place(
                LAYERS, FORWARD, "aug result", "{target} += {value} + (0 if self.bias is None else self.bias)"
            ),
        ),
        "forward.update_cut": (Place(LAYERS, FORWARD, "aug result", "{target} += {value}.detach()"),),
        "forward.A_cut": (Place(LAYERS, FORWARD, "attr lora_A", "{0}.detach()"),),
        "forward.B_cut": (Place(LAYERS, FORWARD, "attr lora_B", "{0}.detach()"),),
        **_branch(LAYERS, FORWARD, "lora_dropout", "self.lora_dropout"),
        "forward.base_cut": (Place(LAYERS, FORWARD, "call linear", "{0}.detach()"),),
        "forward.nonlinear": (Place(LAYERS, FORWARD, "op MatMult", "{left}.relu() @ {right}"),),
        "forward.stale": (
            Place(
                LAYERS, TRAIN, "attr lora_A", "self.__dict__.setdefault('_first', {0}.detach().clone())", 1
            ),
            Place(LAYERS, TRAIN, "attr lora_A", "self._first"),
        ),
        "dropout.in_place": (Place(LAYERS, COMMON, "call Dropout", "{func}({args}, inplace=True)"),),
        "dropout.output": (
            Place(LAYERS, FORWARD, "call lora_dropout", "{arg0}"),
            Place(LAYERS, FORWARD, "aug result", "{target} += self.lora_dropout({value})"),
        ),
        "dropout.in_eval": "nothing to see: in evaluation loralib's weight is folded, and no dropout is called",
        "dropout.exchanged": (Place(LAYERS, COMMON, "call Dropout", "{func}(p=1 - lora_dropout)"),),
        "dropout.base_too": (
            Place(LAYERS, FORWARD, "call lora_dropout", "{arg0}"),
            Place(LAYERS, FORWARD, "body", "x = self.lora_dropout(x) if not self.merged else x"),
        ),
        "init.B_random": (Place(LAYERS, RESET, "call zeros_", NORMAL),),
        "init.both_zero": (Place(LAYERS, RESET, "call kaiming_uniform_", ZEROS),),
        "init.normal": (Place(LAYERS, RESET, "call kaiming_uniform_", NARROW),),
        "init.bound": (Place(LAYERS, RESET, "call kaiming_uniform_", WIDE),),
        "init.exchanged": (
            Place(LAYERS, RESET, "call zeros_", NORMAL),
            Place(LAYERS, RESET, "call kaiming_uniform_", ZEROS),
        ),
        "init.same_seed": (Place(LAYERS, RESET, "body", SEED),),
        "roles.base_trained": (
            Place(LAYERS, INIT, "stmt requires_grad", "pass"),
            Place(UTILS, "mark_only_lora_as_trainable", "test", "False"),
        ),
        "roles.A_frozen": (Place(LAYERS, INIT, "call Parameter", "{func}({args}, requires_grad=False)"),),
        "merge.lost": (Place(LAYERS, TRAIN, "aug data", "pass", 1), Place(LAYERS, TRAIN, "aug data", "pass")),
        "merge.twice": (Place(LAYERS, TRAIN, "stmt merged", "pass", 1),),
        "merge.not_undone": (Place(LAYERS, TRAIN, "aug data", "{target} += {value}"),),
        "save.no_B": (Place(UTILS, "lora_state_dict", "return", NO_B),),
        "save.half": (Place(UTILS, "lora_state_dict", "return", HALF),),
        "dtype.output": (
            Place(LAYERS, FORWARD, "return", "{0}.float()", 1),
            Place(LAYERS, FORWARD, "return", "{0}.float()", 2),
        ),
    },
)

TUNE, TUNE_UTILS = "torchtune/modules/peft/lora.py", "torchtune/modules/peft/_utils.py"
CALL, MAKE = "LoRALinear.forward", "LoRALinear.__init__"
MERGED, SAVED = "get_merged_lora_ckpt", "get_adapter_state_dict"
A_INIT, B_INIT = "_lora_a_init_params", "_lora_b_init_params"
TORCHTUNE = Library(
    "torchtune",
    "tests/faults/subjects/torchtune_layer.py:Torchtune",
    ("torchtune==0.6.1", "torchao==0.17.0", "torch==2.13.0", "numpy"),  # an earlier torchao makes PEFT refuse
    {
        **_scales(TUNE, CALL, "op Div"),
        "scale.twice": (Place(TUNE, CALL, "op Div", "{0} ** 2"),),
        "scale.not_merged": (Place(TUNE_UTILS, MERGED, "op Div", "1.0", 2),),
        "forward.subtracted": (Place(TUNE, CALL, "op Add", "{left} - {right}", 1),),
        "forward.bias_lost": (Place(TUNE, CALL, "call linear", "{func}({arg0}, {arg1})"),),
        "forward.bias_twice": (
            Place(TUNE, CALL, "op Add", "{0} + (0 if self.bias is None else self.bias)", 1),
        ),
        "forward.update_cut": (Place(TUNE, CALL, "op Add", "{left} + {right}.detach()", 1),),
        "forward.A_cut": (Place(TUNE, CALL, "call lora_a", "F.linear({arg0}, self.lora_a.weight.detach())"),),
        "forward.B_cut": (Place(TUNE, CALL, "call lora_b", "F.linear({arg0}, self.lora_b.weight.detach())"),),
        **_branch(TUNE, CALL, "dropout", "self.dropout"),
        "forward.base_cut": (Place(TUNE, CALL, "call linear", "{0}.detach()"),),
        "forward.nonlinear": (Place(TUNE, CALL, "call lora_a", "{0}.relu()"),),
        "forward.stale": (
            Place(
                TUNE,
                CALL,
                "call lora_a",
                "{0} if self.training else F.linear({arg0}, "
                "self.__dict__.setdefault('_first', self.lora_a.weight.detach().clone()))",
            ),
        ),
        "dropout.in_place": (Place(TUNE, MAKE, "call Dropout", "{func}({args}, inplace=True)"),),
        "dropout.output": (
            Place(TUNE, CALL, "call dropout", "{arg0}"),
            Place(TUNE, CALL, "op Add", "{left} + self.dropout({right})", 1),
        ),
        "dropout.in_eval": (Place(TUNE, MAKE, "call Dropout", ALWAYS % "dropout"),),
        "dropout.exchanged": (Place(TUNE, MAKE, "call Dropout", "{func}(p=1 - dropout)"),),
        "dropout.base_too": (
            Place(TUNE, CALL, "call dropout", "{arg0}"),
            Place(TUNE, CALL, "body", "x = self.dropout(x)"),
        ),
        "init.B_random": (Place(TUNE, B_INIT, "call zeros_", NORMAL),),
        "init.both_zero": (Place(TUNE, A_INIT, "call kaiming_uniform_", ZEROS),),
        "init.normal": (Place(TUNE, A_INIT, "call kaiming_uniform_", NARROW),),
        "init.bound": (Place(TUNE, A_INIT, "call kaiming_uniform_", WIDE),),
        "init.exchanged": (
            Place(TUNE, B_INIT, "call zeros_", NORMAL),
            Place(TUNE, A_INIT, "call kaiming_uniform_", ZEROS),
        ),
        "init.same_seed": (Place(TUNE, "LoRALinear.initialize_parameters", "body", SEED),),
        "roles.base_trained": (
            Place(TUNE_UTILS, "set_trainable_params", "call requires_grad_", "{func}(True)"),
        ),
        "roles.A_frozen": (Place(TUNE, "LoRALinear.adapter_params", "return", "['lora_b.weight']"),),
        "merge.lost": (Place(TUNE_UTILS, MERGED, "op Div", "0.0", 2),),
        "merge.twice": (Place(TUNE_UTILS, MERGED, "op Div", "2 * {0}", 2),),
        "merge.not_undone": "torchtune merges a copy, and takes nothing out again",
        "save.no_B": (Place(TUNE_UTILS, SAVED, "return", NO_B),),
        "save.half": (Place(TUNE_UTILS, SAVED, "return", HALF),),
        "dtype.output": (Place(TUNE, CALL, "return", "{0}.float()", 1),),
    },
)

LORA, TUNERS = "peft/tuners/lora/layer.py", "peft/tuners/tuners_utils.py"
UPDATE, START = "LoraLayer.update_layer", "LoraLayer.reset_lora_parameters"
DELTA, MERGE, UNMERGE = "Linear.get_delta_weight", "Linear.merge", "Linear.unmerge"
STATE = "BaseTuner._get_adapter_state_dict"
DROPPED = "self.lora_dropout[self.active_adapters[0]]"
LINEAR = "__import__('torch').nn.functional.linear"
PEFT = Library(
    "peft",
    "harness/subjects/peft_release.py:Peft",
    (),
    {
        **_scales(LORA, UPDATE, "assign scaling", 1),
        "scale.twice": (Place(LORA, FORWARD, "name scaling", "{0} * {0}"),),
        "scale.not_merged": (Place(LORA, DELTA, "attr scaling", "1.0"),),
        "forward.subtracted": (Place(LORA, FORWARD, "op Add", "{left} - {right}"),),
        "forward.bias_lost": (
            Place(LORA, FORWARD, "call base_layer", LINEAR + "(x, self.base_layer.weight)", 2),
        ),
        "forward.bias_twice": (
            Place(
                LORA, FORWARD, "op Add", "{0} + (0 if self.base_layer.bias is None else self.base_layer.bias)"
            ),
        ),
        "forward.update_cut": (Place(LORA, FORWARD, "op Add", "{left} + {right}.detach()"),),
        "forward.A_cut": (Place(LORA, FORWARD, "call lora_A", LINEAR + "({arg0}, lora_A.weight.detach())"),),
        "forward.B_cut": (Place(LORA, FORWARD, "call lora_B", LINEAR + "({arg0}, lora_B.weight.detach())"),),
        **_branch(LORA, FORWARD, "dropout", "dropout"),
        "forward.base_cut": (Place(LORA, FORWARD, "call base_layer", "{0}.detach()", 2),),
        "forward.nonlinear": (Place(LORA, FORWARD, "call lora_A", "{0}.relu()"),),
        "forward.stale": (
            Place(
                LORA,
                FORWARD,
                "call lora_A",
                "{0} if self.training else " + LINEAR + "({arg0}, "
                "self.__dict__.setdefault('_first_' + active_adapter, lora_A.weight.detach().clone()))",
            ),
        ),
        "dropout.in_place": (Place(LORA, UPDATE, "call Dropout", "{func}({args}, inplace=True)"),),
        "dropout.output": (
            Place(LORA, FORWARD, "call dropout", "{arg0}"),
            Place(LORA, FORWARD, "op Add", "{left} + dropout({right})"),
        ),
        "dropout.in_eval": (Place(LORA, UPDATE, "call Dropout", ALWAYS % "lora_dropout"),),
        "dropout.exchanged": (Place(LORA, UPDATE, "call Dropout", "{func}(p=1 - lora_dropout)"),),
        "dropout.base_too": (
            Place(LORA, FORWARD, "call dropout", "{arg0}"),
            Place(LORA, FORWARD, "call base_layer", f"(x := {DROPPED}(x), self.base_layer(x))[1]", 2),
        ),
        "init.B_random": (Place(LORA, START, "call zeros_", NORMAL),),
        "init.both_zero": (Place(LORA, START, "call kaiming_uniform_", ZEROS),),
        "init.normal": (Place(LORA, START, "call kaiming_uniform_", NARROW),),
        "init.bound": (Place(LORA, START, "call kaiming_uniform_", WIDE),),
        "init.exchanged": (
            Place(LORA, START, "call zeros_", NORMAL),
            Place(LORA, START, "call kaiming_uniform_", ZEROS),
        ),
        "init.same_seed": (Place(LORA, START, "body", SEED),),
        "roles.base_trained": (
            Place(TUNERS, "BaseTuner._mark_only_adapters_as_trainable", "stmt requires_grad", "pass"),
        ),
        "roles.A_frozen": (
            Place(
                TUNERS,
                "BaseTunerLayer.set_adapter",
                "assign should_require_grad",
                "{0} and layer_name != 'lora_A'",
            ),
        ),
        "merge.lost": (Place(LORA, MERGE, "aug data", "pass"),),
        "merge.twice": (Place(LORA, MERGE, "call append", "None"),),
        "merge.not_undone": (Place(LORA, UNMERGE, "aug data", "{target} += {value}"),),
        "save.no_B": (Place(TUNERS, STATE, "return", NO_B),),
        "save.half": (Place(TUNERS, STATE, "return", HALF),),
        "dtype.output": (Place(LORA, FORWARD, "call to", "{0}.float()"),),
    },
    apart=(
        "peft==0.21.2",
        "torch==2.13.0",
        "transformers==4.57.1",
        "accelerate==1.2.1",
        "huggingface_hub==0.36.2",
    ),
)

LIBRARIES = {library.name: library for library in (LORALIB, TORCHTUNE, PEFT)}
