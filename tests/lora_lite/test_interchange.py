"""PEFT's checkpoint folders, both ways."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import lora_lite

from .conftest import CONFIGS, perturb

PEFT: dict[str, Any] = {
    "lora": lambda t: peft.LoraConfig(r=4, lora_alpha=6, target_modules=t),
    "pissa": lambda t: peft.LoraConfig(r=4, lora_alpha=6, init_lora_weights="pissa", target_modules=t),
    "dora": lambda t: peft.LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=t),
    "ia3": lambda t: peft.IA3Config(target_modules=t, feedforward_modules=["b"]),
    "hra": lambda t: peft.HRAConfig(r=4, target_modules=t),
    "delora": lambda t: peft.DeloraConfig(r=4, delora_lambda=3, target_modules=t),
}
X = torch.linspace(-1, 1, 24).view(2, 12)


def net() -> nn.Module:
    model = nn.Sequential()
    model.add_module("a", nn.Linear(12, 10))
    model.add_module("b", nn.Linear(10, 9))
    return model


@pytest.mark.parametrize("variant", list(PEFT))
def test_reads_what_peft_wrote(variant: str, tmp_path: Path) -> None:
    model = net()
    theirs = peft.get_peft_model(copy.deepcopy(model), PEFT[variant](["a", "b"]))
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    theirs.save_pretrained(tmp_path)
    lora_lite.load_peft(model, tmp_path)
    torch.testing.assert_close(model(X), theirs(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", list(PEFT))
def test_peft_reads_what_it_wrote(variant: str, tmp_path: Path) -> None:
    model = net()
    base = copy.deepcopy(model)
    fields = {**CONFIGS[variant].to_dict(), "targets": ["a", "b"]}
    if variant == "ia3":
        fields["feedforward"] = ["b"]
    lora_lite.attach(model, lora_lite.config_from_dict(fields))
    perturb(model, 0.1)
    lora_lite.save_peft(model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs = peft.PeftModel.from_pretrained(base, tmp_path)
    torch.testing.assert_close(model(X), theirs(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_qalora": True}, "use_qalora=True, which lora_lite does not have"),
        ({"lora_bias": True}, "lora_bias=True, which lora_lite does not have"),
        ({"modules_to_save": ["b"]}, "modules_to_save"),
        ({"bias": "all"}, "bias='all'"),
        ({"some_future_option": 1}, "some_future_option=1, which lora_lite does not have"),
        ({"rank_pattern": {"a": 2}}, r"a.lora_A.weight: the file has shape \(4, 12\), expected \(2, 12\)"),
        ({"target_modules": ["a"]}, "has tensors for 'b', which its target_modules do not name"),
        ({"target_modules": "a|b", "exclude_modules": ["b"]}, "has tensors for 'b'"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"peft_type": "LOHA"}, "peft_type 'LOHA'; lora_lite reads LORA"),
        ({"r": 3}, r"shape \(4, 12\), expected \(3, 12\)"),
        ({"use_dora": True}, r"expected \['lora_A.weight', 'lora_B.weight', 'lora_magnitude_vector'\]"),
    ],
)
def test_what_it_cannot_take_changes_nothing(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    peft.get_peft_model(copy.deepcopy(model), PEFT["lora"](["a", "b"])).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        lora_lite.load_peft(model, tmp_path)
    assert model.state_dict().keys() == before.keys()
    assert all(p.requires_grad for p in model.parameters())


def test_a_pickled_folder_is_refused(tmp_path: Path) -> None:
    model = net()
    theirs = peft.get_peft_model(copy.deepcopy(model), PEFT["lora"](["a", "b"]))
    theirs.save_pretrained(tmp_path, safe_serialization=False)
    if not (tmp_path / "adapter_model.bin").exists():
        (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ValueError, match="is a pickle, which is never opened"):
        lora_lite.load_peft(model, tmp_path)


class Deep(nn.Module):
    """Three blocks of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({"a": nn.Linear(12, 12), "b": nn.Linear(12, 12)}) for _ in range(3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer["b"](layer["a"](x)))
        return x


PATTERNS: dict[str, dict[str, Any]] = {
    "rank": {"rank_pattern": {"layers.1.a": 2, "b": 6}},
    "alpha": {"alpha_pattern": {"layers.[12].a": 3}},
    "both": {"rank_pattern": {"a": 2}, "alpha_pattern": {"^layers.0.a": 5, "a": 7}},
}


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("pattern", list(PATTERNS))
@pytest.mark.parametrize("variant", ["lora", "pissa", "dora"])
def test_patterns(variant: str, pattern: str, rslora: bool, tmp_path: Path) -> None:
    model, asked = Deep(), PATTERNS[pattern]
    special = {"pissa": {"init_lora_weights": "pissa"}, "dora": {"use_dora": True}, "lora": {}}[variant]
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["a", "b"], use_rslora=rslora, **asked, **special
    )
    theirs = peft.get_peft_model(copy.deepcopy(model), config)
    move(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    mine = copy.deepcopy(model)
    lora_lite.load_peft(mine, tmp_path / "theirs")
    torch.testing.assert_close(mine(X), theirs(X), rtol=1e-4, atol=1e-5)
    lora_lite.save_peft(mine, tmp_path / "mine")
    again = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "mine")
    torch.testing.assert_close(again(X), theirs(X), rtol=1e-4, atol=1e-5)
    lora_lite.save(mine, tmp_path / "file")
    reloaded = copy.deepcopy(model)
    lora_lite.load(reloaded, tmp_path / "file")
    assert torch.equal(reloaded(X), mine(X))


def move(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)


@pytest.mark.parametrize("pattern", ["rank", "alpha"])
def test_a_fresh_adapter_has_what_its_pattern_says(pattern: str) -> None:
    fields = PATTERNS[pattern]
    ours = lora_lite.attach(Deep(), lora_lite.LoRAConfig(rank=4, alpha=6, targets=["a", "b"], **fields))
    theirs = peft.get_peft_model(
        Deep(), peft.LoraConfig(r=4, lora_alpha=6, target_modules=["a", "b"], **fields)
    )
    for name, adapter in ours.items():
        tuner = theirs.base_model.model.get_submodule(name)
        assert adapter.rank == tuner.r["default"]
        assert adapter.scale == tuner.scaling["default"]


def test_deloras_patterns(tmp_path: Path) -> None:
    model = Deep()
    config = peft.DeloraConfig(
        r=4,
        delora_lambda=3,
        rank_pattern={"a": 2},
        lambda_pattern={"layers.1.b": 5},
        target_modules=["a", "b"],
    )
    theirs = peft.get_peft_model(copy.deepcopy(model), config)
    move(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    lora_lite.load_peft(model, tmp_path / "theirs")
    torch.testing.assert_close(model(X), theirs(X), rtol=1e-4, atol=1e-5)
    lora_lite.save_peft(model, tmp_path / "mine")
    again = peft.PeftModel.from_pretrained(Deep(), tmp_path / "mine")
    assert again.base_model.model.layers[0]["a"].r["default"] == 2
    fresh = lora_lite.attach(
        Deep(), lora_lite.DeLoRAConfig(lambda0=3, lambda0_pattern={"layers.1.b": 5}, targets=["a", "b"])
    )
    assert [a.lambda_.item() for a in fresh.values()] == [3, 3, 3, 5, 3, 3]


@pytest.mark.parametrize("gram_schmidt", [False, True])
def test_an_odd_hra_of_pefts_is_read(gram_schmidt: bool, tmp_path: Path) -> None:
    model = net()
    config = peft.HRAConfig(r=3, apply_GS=gram_schmidt, target_modules=["a", "b"])
    with pytest.warns(UserWarning, match="odd"):
        theirs = peft.get_peft_model(copy.deepcopy(model), config)
    theirs.save_pretrained(tmp_path)
    lora_lite.load_peft(model, tmp_path)
    torch.testing.assert_close(model(X), theirs(X), rtol=1e-4, atol=1e-5)


def test_blocks_and_exclusions_are_understood(tmp_path: Path) -> None:
    model = Deep()
    config = peft.LoraConfig(
        r=2,
        target_modules=["a", "b"],
        layers_to_transform=[0, 2],
        layers_pattern="layers",
        exclude_modules=["layers.2.b"],
    )
    theirs = peft.get_peft_model(copy.deepcopy(model), config)
    move(theirs)
    theirs.save_pretrained(tmp_path)
    assert list(lora_lite.load_peft(model, tmp_path)) == ["layers.0.a", "layers.0.b", "layers.2.a"]
    torch.testing.assert_close(model(X), theirs(X), rtol=1e-4, atol=1e-5)


def test_an_ending_of_another_layers_name_is_written_exactly(tmp_path: Path) -> None:
    model = nn.Sequential()
    model.add_module("a", nn.Linear(12, 12))
    model.add_module("more", nn.ModuleDict({"a": nn.Linear(12, 12)}))
    model.forward = lambda x: model.more["a"](model.a(x))  # type: ignore[method-assign]
    lora_lite.attach(model, lora_lite.LoRAConfig(rank=2, targets=r"a"))
    lora_lite.save_peft(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == "a"


PREFIX = "base_model.model."
ZEROS = torch.zeros(4, 12)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{PREFIX}b.lora_A.weight": None}, r"'b': the file has the tensors \['lora_B.weight'\], expected"),
        (
            {f"{PREFIX}b.lora_A.weight": None, f"{PREFIX}b.lora_B.weight": None},
            "no tensors for 'b', which its target_mod",
        ),
        (
            {f"{PREFIX}c.lora_A.weight": ZEROS, f"{PREFIX}c.lora_B.weight": ZEROS.clone()},
            "tensors for 'c', which its target_modu",
        ),
        (
            {f"{PREFIX}a.lora_A.weight": torch.zeros(12, 4)},
            r"a.lora_A.weight: .* \(12, 4\), expected \(4, 12\)",
        ),
        ({f"{PREFIX}a.lora_A.weight": torch.zeros(0)}, r"shape \(0,\), expected \(4, 12\)"),
        ({f"{PREFIX}a.lora_A.weight": ZEROS.int()}, "dtype torch.int32, expected floating-point numbers"),
        (
            {f"{PREFIX}a.lora_A.default.weight": ZEROS},
            r"holds 'base_model.model.a.lora_A.default.weight'; expected",
        ),
        ({"a.lora_A.weight": ZEROS}, "holds 'a.lora_A.weight'; expected base_model.model"),
        ({f"{PREFIX}a.lora_B.bias": torch.zeros(10)}, "lora_B.bias"),
        ({f"{PREFIX}a.weight": torch.zeros(10, 12)}, "holds a 'a.weight' of its own"),
    ],
)
def test_tensors_that_do_not_fit_change_nothing(
    tensors: dict[str, torch.Tensor | None], message: str, tmp_path: Path
) -> None:
    model = net()
    peft.get_peft_model(copy.deepcopy(model), PEFT["lora"](["a", "b"])).save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    changed = {**load_file(path), **tensors}
    save_file({k: t for k, t in changed.items() if t is not None}, path)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        lora_lite.load_peft(model, tmp_path)
    assert model.state_dict().keys() == before.keys()
    assert all(p.requires_grad for p in model.parameters())


def test_ia3s_vector_lies_as_peft_lays_it(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(12, 12))
    lora_lite.attach(model, lora_lite.IA3Config(targets=["0"]))
    lora_lite.save_peft(model, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file({key: tensor.T.contiguous() for key, tensor in load_file(path).items()}, path)
    with pytest.raises(ValueError, match=r"shape \(1, 12\), expected \(12, 1\)"):
        lora_lite.load_peft(lora_lite.detach(model), tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes_are_read(dtype: torch.dtype, tmp_path: Path) -> None:
    model = net()
    fresh = copy.deepcopy(model)
    lora_lite.attach(model, lora_lite.LoRAConfig(rank=2, targets=["a", "b"]))
    perturb(model)
    lora_lite.save_peft(model, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file({key: tensor.to(dtype) for key, tensor in load_file(path).items()}, path)
    for adapter in lora_lite.load_peft(fresh, tmp_path).values():
        assert adapter.A.dtype == torch.float32
    torch.testing.assert_close(fresh(X), model(X), rtol=0.03, atol=0.03)


def test_an_embedding_that_peft_wrote_with_its_base(tmp_path: Path) -> None:
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=32
    )
    model, ids = transformers.LlamaForCausalLM(config).eval(), torch.arange(5)[None]
    theirs = peft.get_peft_model(
        copy.deepcopy(model), peft.LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"])
    )
    move(theirs)
    theirs.save_pretrained(tmp_path, save_embedding_layers=True)
    names = load_file(tmp_path / "adapter_model.safetensors")
    assert any(name.endswith("base_layer.weight") for name in names)
    other = copy.deepcopy(model)
    lora_lite.load_peft(model, tmp_path)
    torch.testing.assert_close(model(ids).logits, theirs.eval()(ids).logits, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        other.model.embed_tokens.weight[3, 3] += 1
    with pytest.raises(ValueError, match=r"holds a 'model.embed_tokens.weight' of its own"):
        lora_lite.load_peft(other, tmp_path)


@pytest.mark.parametrize("form", ["file", "folder"])
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"alpha": 7}, "the file has alpha=6, and alpha=7 was asked for"),
        ({"rank": 2}, "the file has rank=4, and rank=2 was asked for"),
        ({"dropout": 0.5}, "the file has dropout=0.0, and dropout=0.5"),
        ({"rslora": True}, "the file has rslora=False, and rslora=True"),
        ({"alpha_pattern": {"b": 3}}, "'b': the file has alpha=6, and alpha=3 was asked for"),
        ({"variant": "dora"}, "the file holds a lora adapter, and dora was asked for"),
        ({"targets": ["elsewhere"]}, None),
        ({}, None),
    ],
)
def test_a_config_that_contradicts_the_file_is_refused(
    form: str, asked: dict[str, Any], message: str | None, tmp_path: Path
) -> None:
    model = net()
    lora_lite.attach(model, lora_lite.LoRAConfig(rank=4, alpha=6, targets=["a", "b"]))
    perturb(model)
    y, place = model(X), tmp_path / form
    (lora_lite.save if form == "file" else lora_lite.save_peft)(model, place)
    read = lora_lite.load if form == "file" else lora_lite.load_peft
    lora_lite.detach(model)
    config = lora_lite.config_from_dict({"variant": "lora", "rank": 4, "alpha": 6, **asked})
    if message is None:
        read(model, place, config=config)
        assert torch.equal(model(X), y)
        return
    with pytest.raises(ValueError, match=message):
        read(model, place, config=config)
    assert not lora_lite.names(model)


@pytest.mark.parametrize("side", [False, True])
def test_the_gated_side_is_the_files(side: bool, tmp_path: Path) -> None:
    layer = nn.Linear(12, 12)
    lora_lite.attach(layer, lora_lite.IA3Config(feedforward=side))
    lora_lite.save(layer, tmp_path / "a")
    lora_lite.detach(layer)
    with pytest.raises(
        ValueError, match=f"the file has feedforward={side}, and feedforward={not side} was asked for"
    ):
        lora_lite.load(layer, tmp_path / "a", config=lora_lite.IA3Config(feedforward=not side))
    lora_lite.load(layer, tmp_path / "a", config=lora_lite.IA3Config(feedforward=side))


def test_a_loaded_adapter_has_a_fresh_ones_roles(tmp_path: Path) -> None:
    for variant, make in PEFT.items():
        model = net()
        peft.get_peft_model(copy.deepcopy(model), make(["a", "b"])).save_pretrained(tmp_path / variant)
        fresh, loaded = copy.deepcopy(model), copy.deepcopy(model)
        lora_lite.attach(
            fresh, lora_lite.config_from_dict({**CONFIGS[variant].to_dict(), "targets": ["a", "b"]})
        )
        lora_lite.load_peft(loaded, tmp_path / variant)
        roles = [{n: p.requires_grad for n, p in m.named_parameters()} for m in (fresh, loaded)]
        assert variant == "ia3" or roles[0] == roles[1]
        assert {n for n, trains in roles[1].items() if trains} == {n for n in roles[1] if ".lora_lite." in n}
