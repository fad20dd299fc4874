"""Where the references disagree with each other: what, between whom, where it stands, how much, what it means.

Strict both ways: `harness/test_references_agree.py` measures every entry, and audits PEFT against every author;
a difference that is in no entry fails there, and so does an entry that no longer differs. A subject that fails a
claim against an oracle where that oracle is catalogued to differ from the reference of record is judged against
the latter alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from refs import catalog as catalogue
from refs.quotes import cite_target

__all__ = ["Disagreement", "disagreements", "explaining", "plain", "where"]


@dataclass(frozen=True)
class Disagreement:
    """One entry. ``size`` is ``measure`` in numbers; ``differs``: oracle -> the checks that it makes fail.

    ``where``: places in the references, as `refs` resolves them (ALIAS:SYMBOL @ ANCHOR); both sides.
    ``smallest``: the smallest counterexample. ``meaning``: what follows for who uses either. ``instead``: of targets,
    how a layer's name ends that PEFT adapts by default, and how the one that the author adapts in its place ("": none).
    """

    id: str
    variant: str
    what: str
    between: tuple[str, ...]
    aspects: tuple[str, ...]
    where: tuple[str, ...]
    measure: str
    size: float
    smallest: str
    meaning: str
    differs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    of_record: str = "PEFT"
    instead: tuple[str, str] | None = None

    @property
    def how_much(self) -> str:
        """The measured size, in words."""
        return f"{self.measure}: {self.size:.3g}"


FORWARD = (
    "scale.effective",
    "forward.at_init",
    "forward.random_parameters",
    "forward.gradients",
    "forward.input_gradient",
    "forward.effective_weight",
    "step0.gradients",
    "step0.dead_parameters",
    "step0.input_gradient",
)

_CATALOGUE: tuple[Disagreement, ...] = (
    # LoRA
    Disagreement(
        "lora.gaussian_a",
        "lora",
        "The paper draws A from a Gaussian, both codes from a uniform law (kaiming_uniform with a = √5)",
        ("paper", "PEFT", "microsoft/LoRA"),
        ("init",),
        (
            "peft_lora_layer.py:LoraLayer.reset_lora_parameters @ nn.init.kaiming_uniform_ .. nn.init.zeros_",
            "orig_lora_layers.py:Linear.reset_parameters @ nn.init.kaiming_uniform_ .. nn.init.zeros_",
        ),
        "kurtosis of the entries of A in either code (a Gaussian has 3)",
        1.8,
        "any layer: every entry of A lies within ±1/√in",
        "A Gaussian start is the paper's and no bug, but its first steps are not those of the published checkpoints",
    ),
    Disagreement(
        "lora.adapter_dtype",
        "lora",
        "Over a half-precision base the author's A and B are half precision; PEFT keeps them in float32, with "
        "initial values that were rounded through the base's dtype",
        ("PEFT", "microsoft/LoRA"),
        ("init", "dtype"),
        (
            "peft_tuners_utils.py:cast_adapter_dtype @ dtypes_to_convert_to_fp32",
            "orig_lora_layers.py:Linear.__init__ @ self.lora_A .. self.lora_B",
        ),
        "share of PEFT's float32 entries of A over a bfloat16 base that are bfloat16 numbers",
        1.0,
        "a bfloat16 layer, at the start",
        "A checkpoint of the author's code has half the bytes and a third of the precision; float32 adapters do not "
        "start at float32 precision",
    ),
    # PiSSA
    Disagreement(
        "pissa.residual",
        "pissa",
        "The author saves the residual model beside the adapter; PEFT saves A and B alone and factorises again, "
        "whatever base it is given at load",
        ("PEFT", "GraphPKU/PiSSA"),
        ("save_load",),
        (
            "peft_lora_layer.py:LoraLayer.pissa_init @ lora_A .. self.get_base_layer().weight.data#-1",
            "orig_pissa_init.py:<module> @ peft_model.peft_config['default'].init_lora_weights "
            ".. peft_model.save_pretrained#2",
        ),
        "relative distance of PEFT's output from the saved one after loading on the residual base",
        0.661,
        "a 4 x 6 layer of rank 2: save with PEFT, load on the residual weight the first adapter left",
        "A PiSSA adapter is bound to the exact base it was made on; on the author's residual PEFT subtracts twice",
    ),
    Disagreement(
        "pissa.alpha",
        "pissa",
        "The author's script sets alpha to the rank; PEFT takes any alpha and shrinks both factors by √(α/r)",
        ("PEFT", "GraphPKU/PiSSA", "paper"),
        ("init", "scale"),
        ("peft_lora_layer.py:LoraLayer.pissa_init @ Sr#2", "orig_pissa_init.py:lora_config"),
        "‖A‖ at α = 4r over ‖A‖ at α = r, in PEFT",
        0.5,
        "rank 1, alpha 4: every entry of A is half of that at alpha 1",
        "The function at the start is the same, the gradients of A and B grow by √(α/r): alpha is a learning rate",
    ),
    # DoRA
    Disagreement(
        "dora.norm_axis",
        "dora",
        "The paper's ‖·‖_c is over the columns of W ∈ R^{d×k}, one magnitude per input; both codes norm the rows "
        "of the torch weight, one per output",
        ("paper", "PEFT", "NVlabs/DoRA"),
        ("shapes", "init", "forward"),
        (
            "peft_lora_dora.py:DoraLinearLayer.get_weight_norm @ weight .. weight_norm",
            "orig_dora.py:Linear.forward @ new_weight_v .. norm_scale#3",
        ),
        "relative distance of the two effective weights at the same A, B and m = ‖W‖",
        0.405,
        "out 1: by rows the magnitude has one entry, by columns as many as the layer has inputs",
        "m has another length: checkpoints of a literal reading fit neither code",
    ),
    Disagreement(
        "dora.full_gradient",
        "dora",
        "PEFT always treats the norm as a constant (the paper's §4.3); the author's dora_simple=False, and the "
        "paper's Eq. (6), differentiate through it",
        ("PEFT", "NVlabs/DoRA", "paper"),
        ("step0", "training"),
        (
            "peft_lora_dora.py:DoraLinearLayer.forward @ weight_norm#2 .. mag_norm_scale",
            "orig_dora.py:Linear.forward @ norm_scale#2 .. norm_scale#3",
        ),
        "relative distance of the two gradients of B",
        0.493,
        "any layer far from its start; the output and the gradient of m are equal",
        "Another trajectory, the same function",
    ),
    Disagreement(
        "dora.initial_dtype",
        "dora",
        "Over a bfloat16 base both codes take the norms in bfloat16 and only then keep them in float32, so that they "
        "start off the identity that the equation promises",
        ("paper", "PEFT", "NVlabs/DoRA"),
        ("init", "dtype"),
        (
            "peft_lora_dora.py:DoraLinearLayer.update_layer @ lora_weight#2 .. self.weight",
            "orig_dora.py:DoraModel._replace_module @ new_module.weight .. new_module.weight_m_wdecomp.weight.copy_",
        ),
        "largest relative error of the initial magnitude over a bfloat16 base, in either code",
        0.00208,
        "a bfloat16 layer at the start",
        "The adapted model is not exactly the base model before the first step",
    ),
    Disagreement(
        "dora.one_dimension",
        "dora",
        "PEFT answers an x of one dimension with two, (1, out); the author's code raises where there is a bias; "
        "nn.Linear and every other adapter give (out,)",
        ("PEFT", "NVlabs/DoRA", "paper"),
        ("forward",),
        (
            "peft_lora_dora.py:DoraLinearLayer.forward @ mag_norm_scale",
            "orig_dora.py:Linear.forward @ result#4",
        ),
        "dimensions of PEFT's output for an x of one dimension",
        2.0,
        "in 1, out 1, x of shape (1,): y of shape (1, 1)",
        "Code that adds the output to a vector goes on with one dimension too many",
        {"peft": ("forward.one_dimension",)},
        of_record="the equation",
    ),
    # (IA)3
    Disagreement(
        "ia3.general_path",
        "ia3",
        "The author's file has two paths: the parsimonious one gates the bias with the output (as PEFT does), the "
        "general one, taken with a low-rank part, leaves it alone",
        ("PEFT", "r-three/t-few"),
        ("forward", "merge"),
        (
            "peft_ia3_layer.py:Linear.forward @ x .. result#-1",
            "orig_ia3_lora.py:LoRALinear.forward @ weight .. F.linear#3",
        ),
        "‖y − y'‖ / ‖(l − 1) ⊙ b‖ per row of x, between the paths",
        1.0,
        "in 1, out 1, a bias b and a gate l: l w x + l b against l w x + b",
        "On layers with a bias the same gate gives two functions; T5, the author's model, has none",
    ),
    Disagreement(
        "ia3.frozen_gate",
        "ia3",
        "The author's forward looks at requires_grad: a gate that is frozen is not applied",
        ("PEFT", "r-three/t-few"),
        ("forward",),
        (
            "peft_ia3_layer.py:Linear.forward @ x .. result#-1",
            "orig_ia3_lora.py:LoRALinear.forward @ hidden .. hidden#-1",
        ),
        "‖y − y_base‖ of the author's layer with its gate set to 2 and frozen",
        0.0,
        "in 1, out 1, l = 2, frozen: y is the base's",
        "Freezing a trained adapter for inference silently removes it; PEFT applies it either way",
    ),
    Disagreement(
        "ia3.feedforward_targets",
        "ia3",
        "PEFT gates the input of the second feed-forward matrix (`wo`); the author's ia3.json gates the output of "
        "`wi_1`, which only gated feed-forward blocks have",
        ("PEFT", "r-three/t-few"),
        ("targets",),
        (
            "peft_ia3_model.py:IA3Model._check_target_module_feedforward",
            "orig_ia3_config.json:lora_layers",
        ),
        "feed-forward matrices that ia3.json finds in a block with `wi` and `wo`, where PEFT finds one",
        0.0,
        "T5 (not gated): `wi` and `wo`",
        "The same function in T0 and T5 v1.1; in the first T5 the author's configuration trains attention alone",
        instead=(".DenseReluDense.wo", ".DenseReluDense.wi_1"),
    ),
    Disagreement(
        "ia3.query_for_key",
        "ia3",
        "On Qwen2, Qwen3, Gemma and Phi PEFT's table gates q_proj, where the paper and the author gate the keys",
        ("PEFT", "paper", "r-three/t-few"),
        ("targets",),
        (
            "peft_constants.py:TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING @ 'qwen2' .. 'qwen3'",
            "orig_ia3_config.json:lora_layers",
        ),
        "query projections gated per block of a Qwen2 by default (the paper: none, and one of keys)",
        1.0,
        "one block of a Qwen2 or Qwen3 with PEFT's default targets",
        "In attention scores a gate on queries acts as one on keys does only before position and normalisation: "
        "Qwen3's q_norm cancels a common factor of it, and grouped keys are fewer numbers than queries",
        instead=(".q_proj", ".k_proj"),
    ),
    Disagreement(
        "ia3.attention_output",
        "ia3",
        "PEFT's `output.dense` on BERT and RoBERTa also catches attention.output.dense and gates its input, a fourth "
        "gate per block that neither the paper nor the author has",
        ("PEFT", "paper", "r-three/t-few"),
        ("targets",),
        (
            "peft_constants.py:TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING @ 'bert'",
            "orig_ia3_config.json:lora_layers",
        ),
        "gated attention output matrices per block of a BERT by default (the paper: none)",
        1.0,
        "one block of a BERT with PEFT's default targets",
        "An adapter trained with PEFT's defaults has a third more vectors than the paper's",
        instead=(".attention.output.dense", ""),
    ),
    # HRA
    Disagreement(
        "hra.output_side",
        "hra",
        "The llama code reflects the output, W' = H_r … H₁ W with vectors of length out; PEFT, the paper and the "
        "author's other two codes reflect the input, W' = W H₁ … H_r",
        ("PEFT", "paper", "DaShenZi721/HRA llama"),
        ("shapes", "forward", "step0", "scale"),
        (
            "peft_hra_layer.py:HRALinear.get_delta_weight @ opt_u#-1 .. weight#-1",
            "orig_hra_layer.py:OFTLayer.get_delta_weight @ unit_v_list .. weight#-1",
            "orig_hra_layer.py:Linear._get_delta_activations @ delta_weight .. torch.matmul",
        ),
        "relative distance of the outputs at the same U on a square layer",
        1.07,
        "out 1, in 2, rank 1: the llama code can only flip the sign of y",
        "Checkpoints of the llama experiments cannot be loaded into PEFT: the shapes differ, and on square layers the "
        "function does, silently",
        {
            "author_llama": ("shapes.canonical", *FORWARD),
            "author_llama_gs": ("forward.modes",),
        },
    ),
    Disagreement(
        "hra.epsilon",
        "hra",
        "The llama code adds eps to ‖u‖² (6e-5 in its config); no other reference does",
        ("PEFT", "paper", "DaShenZi721/HRA llama"),
        ("forward",),
        (
            "peft_hra_layer.py:HRALinear.get_delta_weight @ opt_u#-1 .. weight#-1",
            "orig_hra_layer.py:OFTLayer.get_delta_weight @ unit_v_list",
        ),
        "relative distance of the output at the llama code's own start from the one without eps",
        0.787,
        "a vector of length √eps: the factor is I − uuᵀ/‖u‖², a projection",
        "At that start the vectors are as short as √eps, so the chain is not orthogonal; a zero vector is NaN in PEFT "
        "and the identity there",
    ),
    Disagreement(
        "hra.unpaired_start",
        "hra",
        "The llama code draws every vector on its own; PEFT and the author's other codes draw them in equal pairs, "
        "whose reflections cancel",
        ("PEFT", "DaShenZi721/HRA llama"),
        ("init",),
        (
            "peft_hra_layer.py:HRALayer.reset_hra_parameters",
            "orig_hra_layer.py:OFTLayer.reset_adapter_parameters @ nn.init.kaiming_uniform_",
        ),
        "relative distance of the llama code's output from the base's at its start (PEFT: 0)",
        0.000441,
        "rank 2: two different reflections instead of one done and undone",
        "The llama code's adapted model is not the base model before the first step; that it is near is eps's doing, "
        "which shrinks the reflections of such short vectors",
        {"author_llama": ("init.pairs",)},
    ),
    Disagreement(
        "hra.gram_schmidt_start",
        "hra",
        "With Gram-Schmidt PEFT and the author's control and nlu codes still start in equal pairs, whose second "
        "vector is rounding noise once the first is subtracted; the llama code starts at unit vectors",
        ("PEFT", "DaShenZi721/HRA llama"),
        ("init",),
        (
            "peft_hra_layer.py:HRALayer.reset_hra_parameters",
            "orig_hra_layer_gs.py:OFTLayer.create_adapter_parameters @ self.oft_r[adapter_name]",
        ),
        "length of PEFT's second vector once the first is subtracted, over its own (up to rounding)",
        0.0,
        "rank 2, both columns equal: the second one minus its projection is zero up to rounding",
        "PEFT's HRA with apply_GS starts at a random function, not even an orthogonal one; the llama code flips the "
        "sign of its first r outputs",
    ),
    # DeLoRA
    Disagreement(
        "delora.frozen_copy",
        "delora",
        "The author's forward subtracts a frozen copy of the start, BΞA − DΦC, so that random A and B start at the "
        "identity; PEFT starts at B = 0 and subtracts nothing",
        ("PEFT", "ExplainableML/DeLoRA", "paper"),
        ("forward", "step0", "scale"),
        (
            "peft_delora_layer.py:DeloraLayer._compute_delta",
            "orig_delora.py:Linear.get_ABCD @ Wnorm .. ABCD#-1",
        ),
        "relative distance of the outputs at the same A, B and λ",
        0.151,
        "in 1, out 1, rank 1, at the author's start: y = W x there, W x ± λ |W| x in PEFT",
        "An author's checkpoint loaded into PEFT without its frozen pair is another model",
        {"author": FORWARD},
    ),
    Disagreement(
        "delora.lambda_on_both",
        "delora",
        "The author multiplies the frozen term by the present λ; the paper's Eq. (9) freezes it with the λ it had",
        ("paper", "ExplainableML/DeLoRA"),
        ("forward", "step0"),
        (
            "peft_delora_layer.py:DeloraLayer._compute_delta",
            "orig_delora.py:Linear.get_ABCD @ diag12 .. diag34#-1",
        ),
        "|∂L/∂λ| by Eq. (9) where the author's code has 0, at its start",
        0.237,
        "rank 1 at the start: BΞA = DΦC, so λ multiplies zero",
        "λ gets no gradient on the first step in the author's code",
    ),
    Disagreement(
        "delora.initial_b",
        "delora",
        "The author draws B like A; PEFT starts at B = 0",
        ("PEFT", "ExplainableML/DeLoRA"),
        ("init",),
        (
            "peft_delora_layer.py:DeloraLayer.reset_delora_parameters @ nn.init.kaiming_uniform_ .. nn.init.zeros_",
            "orig_delora.py:Linear.reset_parameters @ nn.init.kaiming_uniform_ .. self.frozen_D.data",
        ),
        "largest entry of the author's initial B (PEFT: 0)",
        0.46,
        "rank 1: B = 0 against B in ±1",
        "PEFT's first step on B is divided by its guard of 1e-4, so that the update has full size at once, at any "
        "learning rate",
        {"author": ("init.deterministic",)},
    ),
    Disagreement(
        "delora.norms_recomputed",
        "delora",
        "PEFT captures ‖W‖ at creation in a persistent buffer; the author takes the present weight's norms anew at "
        "every call",
        ("PEFT", "ExplainableML/DeLoRA"),
        ("shapes", "forward", "save_load", "merge"),
        (
            "peft_delora_layer.py:DeloraLayer.reset_delora_parameters @ w .. self.delora_w_norm[adapter_name]",
            "orig_delora.py:Linear.get_ABCD @ Wnorm .. ABCD#-1",
        ),
        "‖ΔW‖ over what it was, after the base weight is doubled, in the author's form (PEFT: 1)",
        2.0,
        "in 1, out 1: w → 2w",
        "On another base PEFT's update keeps its size, the author's follows the base; the author's unmerge takes the "
        "norms of the merged weight",
        {"author": ("shapes.canonical", "shapes.roles")},
    ),
    Disagreement(
        "delora.clamp",
        "delora",
        "PEFT keeps ‖a_i‖ and ‖b_i‖ above 1e-4; the author and the paper divide by whatever they are",
        ("PEFT", "ExplainableML/DeLoRA", "paper"),
        ("forward", "step0"),
        (
            "peft_delora_layer.py:DeloraLayer._compute_delta @ An .. diag",
            "orig_delora.py:Linear.get_ABCD @ diag12 .. ABCD#2",
        ),
        "‖ΔW‖ at ‖b‖ = 5e-5 over ‖ΔW‖ at ‖b‖ = 1, in PEFT (unguarded: 1)",
        0.5,
        "rank 1, B = 0: ΔW = 0 in PEFT, NaN in the author's code",
        "Below the guard the update depends on the length of b; the guard is what makes a start at B = 0 possible",
    ),
    Disagreement(
        "delora.aliasing",
        "delora",
        "As shipped, the author's frozen copies share the storage of A and B, so that on a CPU training moves both "
        "terms and the weight never",
        ("PEFT", "ExplainableML/DeLoRA"),
        ("training",),
        (
            "peft_delora_layer.py:DeloraLayer.reset_delora_parameters @ nn.init.kaiming_uniform_ .. nn.init.zeros_",
            "orig_delora.py:Linear.reset_parameters @ self.frozen_C.data .. self.frozen_D.data",
        ),
        "largest change of the effective weight over twenty AdamW steps of the code as shipped",
        0.0,
        "any layer on a CPU that was neither moved nor cast",
        "Training has no effect at all until the layer changes device or dtype, which ends the sharing",
    ),
)


def disagreements(variant: str | None = None) -> list[Disagreement]:
    """The entries of a variant, or all of them."""
    return [d for d in _CATALOGUE if variant in (None, d.variant)]


def explaining(check: str, variant: str, oracle: str) -> Disagreement | None:
    """The entry that makes ``check`` differ between ``oracle`` and the reference of record, if there is one."""
    return next((d for d in disagreements(variant) if check in d.differs.get(oracle, ())), None)


def where(entry: Disagreement) -> list[str]:
    """``alias:Lnnn`` of each place; ``alias:symbol`` where the file is not here."""
    catalog = catalogue.load()
    found = [cite_target(catalog, *catalogue.parse_target(target)) for target in entry.where]
    labels = [c.label if c.missing is None else f"{c.alias}:{c.symbol} (no lines: not synced)" for c in found]
    return list(dict.fromkeys(labels))


def plain(entry: Disagreement) -> dict[str, Any]:
    """The entry as `audit.json` holds it."""
    return {
        "id": entry.id,
        "variant": entry.variant,
        "what": entry.what,
        "between": list(entry.between),
        "aspects": list(entry.aspects),
        "checks": {oracle: list(checks) for oracle, checks in entry.differs.items()},
        "where": ", ".join(where(entry)),
        "how_much": entry.how_much,
        "smallest": entry.smallest,
        "meaning": entry.meaning,
    }
