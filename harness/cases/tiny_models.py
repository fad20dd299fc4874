"""Tiny whole models of two dozen architectures, built from transformers' configs: no download, random weights.

A :class:`ModelCase` is to a model what :class:`harness.cases.Case` is to a layer: plain data from which the model,
its input and every drawn value follow.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import io
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from oracles.implementation import AdapterSpec
from oracles.variants import VARIANTS, Variant
from oracles.vectors.awkward import base_of
from oracles.vectors.bases import base_tensors
from oracles.vectors.chain import ChainModel

Sharing = Literal["", "module", "weight"]
VOCABULARY, BATCH, LENGTH = 32, 2, 5


@dataclass(frozen=True)
class Architecture:
    """A model class of transformers and a tiny config for it.

    ``endings``: targets worth asking for by name. ``pair``: two linear layers of a block whose weights have the same
    shape, by their endings. ``conv1d``: its linear layers are GPT-2's transposed ones, no ``nn.Linear``. ``layers``:
    of a plain torch model instead, the names of its linear layers.
    """

    id: str
    model: str
    config: str
    settings: Mapping[str, Any]
    endings: tuple[tuple[str, ...], ...]
    pair: tuple[str, str]
    encoder_decoder: bool = False
    conv1d: bool = False
    layers: tuple[str, ...] = ()


COMMON = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": VOCABULARY,
}
QUIET = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GROUPED = {**COMMON, **QUIET, "num_key_value_heads": 1, "head_dim": 8}
UNDROPPED = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
T5 = {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 1,
    "num_heads": 2,
    "vocab_size": VOCABULARY,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}
GPT2 = {
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_inner": 24,
    "vocab_size": VOCABULARY,
    "n_positions": 16,
    **{f"{part}_pdrop": 0.0 for part in ("resid", "embd", "attn")},
}
BART = {
    "d_model": 16,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 16,
    "dropout": 0.0,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
    **{f"{side}_layers": 1 for side in ("encoder", "decoder")},
    **{f"{side}_attention_heads": 2 for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": 24 for side in ("encoder", "decoder")},
}
UNSPLIT = {"hidden_size": 16, "vocab_size": VOCABULARY, **UNDROPPED, **QUIET}
# ("o",) must not catch T5's wo, ("dense",) not GPT-NeoX's dense_h_to_4h; a full name adapts one layer.
LLAMA_ENDINGS = (("k_proj",), ("model.layers.1.self_attn.q_proj",), ("1.mlp.up_proj", "o_proj"))
QO = ("self_attn.q_proj", "self_attn.o_proj")


def _llama_like(id_: str, name: str, *endings: tuple[str, ...], **more: Any) -> Architecture:
    settings, config = {**GROUPED, **more}, f"{name}TextConfig" if id_.endswith("_text") else f"{name}Config"
    return Architecture(id_, f"{name}ForCausalLM", config, settings, endings, QO)


ARCHITECTURES: dict[str, Architecture] = {
    a.id: a
    for a in (
        _llama_like("llama", "Llama", *LLAMA_ENDINGS),
        _llama_like("mistral", "Mistral", ("gate_proj",)),
        _llama_like("qwen2", "Qwen2", ("k_proj", "mlp.down_proj")),
        _llama_like("qwen3", "Qwen3", ("o_proj",)),
        _llama_like("gemma", "Gemma", ("up_proj",)),
        Architecture(
            "phi", "PhiForCausalLM", "PhiConfig",
            {**COMMON, **QUIET, **{f"{part}_pdrop": 0.0 for part in ("resid", "embd")}},
            (("dense",),), ("self_attn.q_proj", "self_attn.dense"),
        ),
        Architecture(
            "gpt2", "GPT2LMHeadModel", "GPT2Config", {**GPT2, **QUIET},
            (("c_proj",), ("attn.c_proj", "c_fc")), ("attn.c_attn", "attn.c_attn"), conv1d=True,
        ),
        Architecture(
            "gpt_neox", "GPTNeoXForCausalLM", "GPTNeoXConfig", {**COMMON, **QUIET, **UNDROPPED},
            (("dense",),), ("attention.dense", "attention.dense"),
        ),
        Architecture(
            "t5", "T5ForConditionalGeneration", "T5Config", T5,
            (("o",), ("wi", "EncDecAttention.q")), ("SelfAttention.q", "SelfAttention.k"),
            encoder_decoder=True,
        ),
        Architecture(
            "t5_gated", "T5ForConditionalGeneration", "T5Config", {**T5, "feed_forward_proj": "gated-gelu"},
            (("wi_1", "k"),), ("SelfAttention.q", "SelfAttention.k"), encoder_decoder=True,
        ),
        Architecture(
            "bert", "BertForMaskedLM", "BertConfig",
            {**COMMON, **{f"{part}_dropout_prob": 0.0 for part in ("hidden", "attention_probs")}},
            (("dense",), ("output.dense",)), ("self.query", "self.key"),
        ),
        Architecture(
            "opt", "OPTForCausalLM", "OPTConfig",
            {
                **{k: v for k, v in COMMON.items() if k != "intermediate_size"}, "ffn_dim": 24, "dropout": 0.0,
                "word_embed_proj_dim": 16, "max_position_embeddings": 16, **QUIET,
            },
            (("fc1", "v_proj"),), ("self_attn.q_proj", "self_attn.out_proj"),
        ),
        # Two experts for each token of two: routing cannot flip, so rounding stays small.
        _llama_like("mixtral", "Mixtral", ("o_proj",),
            num_local_experts=2, num_experts_per_tok=2, experts_implementation="eager"),
        _llama_like("gemma2", "Gemma2"),
        _llama_like("gemma3_text", "Gemma3"),
        Architecture(
            "bart", "BartForConditionalGeneration", "BartConfig", {**BART, **QUIET},
            (), ("self_attn.q_proj", "self_attn.k_proj"), encoder_decoder=True,
        ),
        Architecture(
            "bloom", "BloomForCausalLM", "BloomConfig", {**UNSPLIT, "n_layer": 2, "n_head": 2},
            (), ("self_attention.dense", "self_attention.dense"),
        ),
        Architecture(
            "falcon", "FalconForCausalLM", "FalconConfig",
            {**UNSPLIT, "num_hidden_layers": 2, "num_attention_heads": 2},
            (), ("self_attention.dense", "self_attention.dense"),
        ),
        Architecture(
            "gpt_neo", "GPTNeoForCausalLM", "GPTNeoConfig",
            {
                "hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 24, "vocab_size": VOCABULARY,
                "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 16, **QUIET,
                **{f"{part}_dropout": 0.0 for part in ("embed", "attention", "resid")},
            },
            (), ("attention.q_proj", "attention.k_proj"),
        ),
        Architecture(
            "gptj", "GPTJForCausalLM", "GPTJConfig", {**GPT2, **QUIET, "rotary_dim": 4},
            (), ("attn.q_proj", "attn.k_proj"),
        ),
        Architecture(
            "mt5", "MT5ForConditionalGeneration", "MT5Config", T5,
            (), ("SelfAttention.q", "SelfAttention.k"), encoder_decoder=True,
        ),
        Architecture(
            "roberta", "RobertaForMaskedLM", "RobertaConfig",
            {
                **COMMON, **QUIET, "max_position_embeddings": 16,
                **{f"{part}_dropout_prob": 0.0 for part in ("hidden", "attention_probs")},
            },
            (), ("self.query", "self.key"),
        ),
    )
}  # fmt: skip
# Every adapter library is expected to know these; of the others it may say that it has no defaults for them.
EXPECTED = ("llama", "mistral", "qwen2", "qwen3", "gpt2", "t5", "t5_gated", "bert")
# Long lists of targets: of full names, two of which are, but for the dot, the endings of other layers' names, and of
# endings at a dot.
BLOCKS = tuple(f"blocks.{i}.{n}" for i in range(11) for n in ("q", "k"))
MANY = Architecture(
    "many_blocks", "", "", {}, (BLOCKS, tuple(name.removeprefix("blocks.") for name in BLOCKS)), ("q", "k"),
    layers=(*BLOCKS, "sub_blocks.0.q", "sub_blocks.1.k", "tail.2.k_q", "tail.k"),
)  # fmt: skip


@dataclass(frozen=True)
class ModelCase:
    """One tiny model, what to adapt it with and where.

    ``targets`` None: the variant's defaults. ``sharing``: the first and second block use one module, or two layers of
    the first block one weight. ``far``: adapters far from their start.
    """

    spec: AdapterSpec
    architecture: str
    targets: tuple[str, ...] | None = None
    sharing: Sharing = ""
    far: bool = True
    seed: int = 0

    @property
    def variant(self) -> Variant:
        return VARIANTS[self.spec.variant]

    @property
    def kind(self) -> Architecture:
        return MANY if self.architecture == MANY.id else ARCHITECTURES[self.architecture]

    @property
    def given_targets(self) -> list[str] | None:
        """``targets`` as ``adapt_model`` takes them."""
        return None if self.targets is None else list(self.targets)

    def generator(self, stream: int) -> torch.Generator:
        """A generator of this case's own; ``stream`` keeps weights, input and parameters independent."""
        return _generator(self.seed, stream)

    def base(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """A fresh model, the same at every call: weights, norms and biases all random, none at its trivial start."""
        model = _filled(self.architecture, self.seed).thaw()
        if self.sharing:
            share(model, self.pair_names(model), self.sharing)
        return model.to(dtype)

    def pair_names(self, model: nn.Module) -> tuple[str, str]:
        """The layers that :attr:`sharing` makes one: of two blocks, or of one."""
        of_first, of_second = self.kind.pair
        found = [n for n, _ in model.named_modules(remove_duplicate=False) if n.endswith("." + of_first)]
        first = found[0]
        return first, found[1] if self.sharing == "module" else first.removesuffix(of_first) + of_second

    @functools.cached_property
    def inputs(self) -> dict[str, Tensor]:
        """Token ids, as the model's keyword arguments."""
        ids = torch.randint(3, VOCABULARY, (BATCH, LENGTH), generator=self.generator(1))
        return {"input_ids": ids, **({"decoder_input_ids": ids.flip(1)} if self.kind.encoder_decoder else {})}

    @functools.cached_property
    def labels(self) -> Tensor:
        """The token asked for at each position (batch, length)."""
        return torch.randint(3, VOCABULARY, (BATCH, LENGTH), generator=self.generator(2))

    def describe(self) -> dict[str, Any]:
        """The case in plain values, for a witness."""
        spec = {k: v for k, v in dataclasses.asdict(self.spec).items() if k in ("rank", "alpha")}
        modes = {m: True for m in self.variant.modes if self.variant.option(m).of(self.spec)}
        targets = "default" if self.targets is None else shortened(self.targets)
        sharing = {"sharing": self.sharing} if self.sharing else {}
        return {
            "architecture": self.architecture,
            "variant": self.spec.variant,
            "targets": targets,
            **(spec if self.variant.has_rank else {}),
            **modes,
            **sharing,
            "seed": self.seed,
        }


def shortened(targets: Sequence[str], first: int = 4) -> list[str]:
    """A list of targets for a witness, one of more than six by its ``first`` few and their number."""
    return list(targets) if len(targets) <= 6 else [*targets[:first], f"... ({len(targets)})"]


def blank(architecture: str) -> nn.Module:
    """A fresh model of that architecture in training mode."""
    return _frozen(architecture).thaw()


@functools.cache
def _frozen(architecture: str) -> Frozen:
    if architecture == MANY.id:
        return Frozen(plain_model(MANY.layers))
    import transformers  # slow to import, and not for those who ask no model

    kind = ARCHITECTURES[architecture]
    config = getattr(transformers, kind.config)(**kind.settings)
    return Frozen(getattr(transformers, kind.model)(config).train())


def plain_model(layers: Sequence[str]) -> nn.Module:
    """Linear layers of these names, in training mode."""
    base = base_of(MANY.id, layers)
    model = ChainModel(base, base_tensors(base)).train()
    model.config = {"model_type": "custom"}  # type: ignore[assignment]
    return model


@functools.lru_cache(maxsize=64)
def _filled(architecture: str, seed: int) -> Frozen:
    """The model whose values follow from ``seed``: one case of it serves many checks."""
    return _frozen(architecture).filled(_generator(seed, 0))


def _generator(seed: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 8 + stream)


class _TensorsAside(pickle.Pickler):
    """Pickles all but tensors, which go into a list, each once."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []
        self.places: dict[int, int] = {}

    def persistent_id(self, part: object) -> int | None:
        if not isinstance(part, Tensor):
            return None
        if id(part) not in self.places:
            self.places[id(part)] = len(self.tensors)
            self.tensors.append(part)
        return self.places[id(part)]


class Frozen:
    """A model to make copies of: several times quicker than deepcopy, and than building it."""

    def __init__(self, model: nn.Module) -> None:
        stream = io.BytesIO()
        pickler = _TensorsAside(stream)
        pickler.dump(model)
        self.tensors, self.pickled = pickler.tensors, stream.getvalue()

    def thaw(self) -> nn.Module:
        """A copy that shares nothing with the model, its tensors tied where they were."""
        return self._around([copy.deepcopy(tensor) for tensor in self.tensors])

    def filled(self, generator: torch.Generator) -> Frozen:
        """The same model with other values (:func:`fill`)."""
        other = copy.copy(self)
        other.tensors = [copy.deepcopy(tensor) for tensor in self.tensors]
        fill(self._around(other.tensors), generator)
        return other

    def _around(self, tensors: list[Tensor]) -> nn.Module:
        unpickler = pickle.Unpickler(io.BytesIO(self.pickled))
        unpickler.persistent_load = tensors.__getitem__  # type: ignore[method-assign]
        return cast(nn.Module, unpickler.load())


@torch.no_grad()
def fill(model: nn.Module, generator: torch.Generator) -> None:
    """Random values for every parameter: of order 1/√in for matrices, near one for norms, none near zero for biases."""
    for name, parameter in model.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.dim() > 1:
            drawn = drawn / parameter.shape[-1] ** 0.5
        elif name.endswith("bias"):
            drawn = (drawn + drawn.sign()) / 4
        else:
            drawn = 1 + drawn / 5
        parameter.copy_(drawn)


def share(model: nn.Module, names: tuple[str, str], how: Sharing) -> None:
    """Let two layers be one module, or have one weight."""
    first, second = names
    layer = model.get_submodule(first)
    if how == "module":
        put(model, second, layer)
    else:
        model.get_submodule(second).weight = layer.weight


def put(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Let ``layer`` stand at ``name`` in ``model``."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer)


def logits(model: nn.Module, case: ModelCase) -> Tensor:
    """The model's answer to the case's input (batch, length, vocabulary)."""
    return model(**case.inputs).logits


def loss(model: nn.Module, case: ModelCase) -> tuple[Tensor, Tensor]:
    """Logits and the cross-entropy against the case's labels."""
    y = logits(model, case)
    return y, nn.functional.cross_entropy(y.flatten(0, 1), case.labels.flatten())


def heads(model: nn.Module) -> dict[str, Tensor]:
    """The weights of the embeddings and of the output head, by their module's name."""
    found = (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[operator]
    return {name: cast(Tensor, m.weight) for name, m in model.named_modules() if any(m is f for f in found)}
