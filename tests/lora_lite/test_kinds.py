"""LoRA and DoRA on transformers' Conv1D, on embeddings and on convolutions: the equations, the start, merging, PEFT."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding
from transformers.pytorch_utils import Conv1D

import lora_lite
from lora_lite import AdapterConfig, DoRAConfig, LoRAConfig

from .conftest import CONFIGS, perturb

IDS = torch.tensor([[3, 0, 2], [1, 3, 6]])
Config = type[LoRAConfig]


def conv1d() -> nn.Module:
    return Conv1D(9, 12)


def scaled() -> nn.Module:
    return Gemma3TextScaledWordEmbedding(7, 12, padding_idx=0, embed_scale=12**0.5)


MAKE: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "conv1d": (conv1d, torch.randn(2, 3, 12)),
    "square conv1d": (lambda: Conv1D(12, 12), torch.randn(2, 3, 12)),
    "embedding": (lambda: nn.Embedding(7, 12), IDS),
    "padded embedding": (lambda: nn.Embedding(7, 12, padding_idx=0), IDS),
    "scaled embedding": (scaled, IDS),
    "conv2d 1x1": (lambda: nn.Conv2d(5, 6, 1), torch.randn(2, 5, 8, 7)),
    "conv2d 3x2": (lambda: nn.Conv2d(5, 6, (3, 2), stride=(2, 1), padding=(1, 2)), torch.randn(2, 5, 8, 7)),
    "conv2d dilated": (lambda: nn.Conv2d(5, 6, 3, dilation=2, padding="same"), torch.randn(2, 5, 8, 7)),
    "conv2d reflecting": (
        lambda: nn.Conv2d(5, 6, 3, padding=1, padding_mode="reflect"),
        torch.randn(5, 8, 7),
    ),
    "conv2d without bias": (lambda: nn.Conv2d(5, 6, 3, bias=False), torch.randn(2, 5, 8, 7)),
}
CONFIG: dict[str, LoRAConfig] = {
    "lora": LoRAConfig(rank=4, alpha=6),
    "rslora": LoRAConfig(rank=4, alpha=6, rslora=True),
    "dora": DoRAConfig(rank=4, alpha=6),
}


def layer_and_input(kind: str) -> tuple[nn.Module, Tensor]:
    make, x = MAKE[kind]
    return make().double(), x.double() if x.is_floating_point() else x


def unfolded(adapter: Any) -> tuple[Tensor, Tensor]:
    """A (r, ·) and B (out, r) as matrices."""
    return adapter.A.detach().flatten(1), adapter.B.detach().flatten(1)


def effective(adapter: Any, weight: Tensor, config: LoRAConfig) -> Tensor:
    """The weight that the adapted layer must compute with, in the layer's own layout, by the equations."""
    turned = adapter.kind.name in ("conv1d", "embedding")
    W = weight.T if turned else weight.flatten(1)
    A, B = unfolded(adapter)
    V = W + config.alpha / (config.rank**0.5 if config.rslora else config.rank) * B @ A
    if isinstance(config, DoRAConfig):
        V = adapter.m.detach()[:, None] * V / V.norm(dim=1, keepdim=True)
    return V.T if turned else V.view(weight.shape)


@pytest.mark.parametrize("kind", list(MAKE))
@pytest.mark.parametrize("name", list(CONFIG))
def test_forward_merge_and_detach(kind: str, name: str) -> None:
    layer, x = layer_and_input(kind)
    weight, base = layer.weight.detach().clone(), layer(x)
    twin, config = copy.deepcopy(layer), CONFIG[name]
    adapter: Any = lora_lite.attach(layer, config)[""]
    torch.testing.assert_close(layer(x), base, rtol=0, atol=0)
    perturb(layer)
    with torch.no_grad():
        twin.weight.copy_(effective(adapter, weight, config))
    y = layer(x)
    torch.testing.assert_close(y, twin(x), rtol=1e-10, atol=1e-10)
    lora_lite.merge_in_place(layer)
    torch.testing.assert_close(layer.weight, twin.weight, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(layer(x), y, rtol=1e-10, atol=1e-10)
    lora_lite.unmerge(layer)
    assert torch.equal(layer(x), y)
    lora_lite.detach(layer)
    assert torch.equal(layer.weight, weight)
    assert torch.equal(layer(x), base)


@pytest.mark.parametrize("kind", list(MAKE))
def test_gradients(kind: str) -> None:
    layer, x = layer_and_input(kind)
    lora_lite.attach(layer, CONFIG["lora"])
    perturb(layer)
    given = list(lora_lite.parameters(layer))
    if kind == "padded embedding" or kind == "scaled embedding":
        x = x.clamp(min=1)  # the padding token's column gets no gradient though the output depends on it
    assert torch.autograd.gradcheck(lambda *_: layer(x), given)


@pytest.mark.parametrize("kind", list(MAKE))
def test_dora_s_gradients_hold_its_norm_constant(kind: str) -> None:
    layer, x = layer_and_input(kind)
    x = x if x.is_floating_point() else x.clamp(min=1)
    adapter: Any = lora_lite.attach(layer, CONFIG["dora"])[""]
    perturb(layer)
    norm = adapter.row_norm(lora_lite.weight_of(layer))
    adapter.row_norm = lambda W: norm
    assert torch.autograd.gradcheck(lambda *_: layer(x), list(lora_lite.parameters(layer)))


def test_the_padding_token_learns_nothing() -> None:
    layer = nn.Embedding(7, 12, padding_idx=0)
    adapter: Any = lora_lite.attach(layer, CONFIG["lora"])[""]
    perturb(layer)
    layer(IDS).square().sum().backward()
    assert not adapter.A.grad[:, 0].any()
    assert adapter.A.grad[:, 3].any()


def test_max_norm_never_writes_the_factors() -> None:
    layer = nn.Embedding(7, 12, max_norm=0.5)
    adapter: Any = lora_lite.attach(layer, LoRAConfig(rank=2))[""]
    perturb(layer)
    A = adapter.A.detach().clone()
    layer(IDS)
    assert torch.equal(adapter.A, A)
    with pytest.raises(ValueError, match=r"max_norm=0.5 would renormalise the merged rows"):
        lora_lite.merge(layer)
    with pytest.raises(ValueError, match="max_norm"):
        lora_lite.attach(nn.Embedding(7, 12, max_norm=0.5), DoRAConfig(rank=2))


def grouped() -> nn.Conv2d:
    return nn.Conv2d(6, 8, 3, padding=1, groups=2).double()


def test_groups() -> None:
    """A sees all channels, B is grouped: the update is a dense convolution beside the grouped one."""
    layer, x = grouped(), torch.randn(2, 6, 5, 5, dtype=torch.float64)
    base = layer(x)
    adapter: Any = lora_lite.attach(layer, LoRAConfig(rank=4, alpha=6))[""]
    perturb(layer)
    A, B = unfolded(adapter)
    update = torch.cat([B[:4] @ A[:2], B[4:] @ A[2:]]).view(8, 6, 3, 3)
    torch.testing.assert_close(layer(x), base + 1.5 * F.conv2d(x, update, padding=1))
    with pytest.raises(ValueError, match="dense convolution, which a weight with groups=2 cannot hold"):
        lora_lite.merge_in_place(layer)
    for config, message in (
        (LoRAConfig(rank=3), "groups=2 needs a rank that it divides, got 3"),
        (DoRAConfig(rank=4), "groups=2"),
    ):
        with pytest.raises(ValueError, match=message):
            lora_lite.attach(grouped(), config)


@pytest.mark.parametrize("name", ["pissa", "ia3", "hra", "delora"])
@pytest.mark.parametrize("kind", ["embedding", "conv2d 1x1"])
def test_the_others_refuse_what_is_not_linear(name: str, kind: str) -> None:
    layer, _ = layer_and_input(kind)
    with pytest.raises(ValueError, match=f"{name} takes layers of kind linear, conv1d; this one is of kind"):
        lora_lite.attach(layer, CONFIGS[name])


class Net(nn.Module):
    """One layer of each kind; the head is tied to the embedding."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 12, padding_idx=0)
        self.mix = Conv1D(12, 12)
        self.conv = nn.Conv2d(2, 4, 3, padding=1, groups=groups)
        self.head = nn.Linear(12, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        h = self.mix(self.embed(ids))
        return self.head(self.conv(h[:, None].expand(-1, 2, -1, -1)).sum(1))


def for_net(config: LoRAConfig) -> AdapterConfig:
    return lora_lite.config_from_dict({**config.to_dict(), "targets": ["embed", "mix", "conv"]})


@pytest.mark.parametrize("name", list(CONFIG))
def test_a_tied_head_is_untouched(name: str) -> None:
    model = Net()
    weight = model.head.weight
    lora_lite.attach(model, for_net(CONFIG[name]))
    perturb(model)
    y = model(IDS)
    lora_lite.merge_in_place(model)
    torch.testing.assert_close(model(IDS), y, rtol=1e-3, atol=1e-3)
    assert model.head.weight is weight
    lora_lite.unmerge(model)
    assert model.embed.weight is weight


@pytest.mark.parametrize("name", list(CONFIG))
@pytest.mark.parametrize("direction", ["to PEFT", "from PEFT"])
@pytest.mark.parametrize("groups", [1, 2])
def test_peft_exchanges_them(name: str, direction: str, groups: int, tmp_path: Path) -> None:
    if name == "dora" and groups == 2:
        pytest.skip("refused, see test_groups")
    model = Net(groups).eval()
    base, config = copy.deepcopy(model), CONFIG[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if direction == "to PEFT":
            lora_lite.attach(model, for_net(config))
            perturb(model)
            lora_lite.save_peft(model, tmp_path)
            theirs = peft.PeftModel.from_pretrained(base, tmp_path).eval()
        else:
            dora, rs = isinstance(config, DoRAConfig), config.rslora
            theirs = peft.get_peft_model(
                base,
                peft.LoraConfig(
                    r=4, lora_alpha=6, use_dora=dora, use_rslora=rs, target_modules=["embed", "mix", "conv"]
                ),
            ).eval()
            with torch.no_grad():
                for p in theirs.parameters():
                    p.add_(torch.randn_like(p) * 0.3 * p.requires_grad)
            theirs.save_pretrained(tmp_path)
            lora_lite.load_peft(model, tmp_path)
    assert sum(isinstance(m, BaseTunerLayer) for m in theirs.modules()) == 3
    torch.testing.assert_close(model(IDS), theirs(IDS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", list(CONFIG))
def test_files(name: str, tmp_path: Path) -> None:
    model = Net()
    fresh = copy.deepcopy(model)
    lora_lite.attach(model, for_net(CONFIG[name]))
    perturb(model)
    lora_lite.save(model, tmp_path / "a")
    lora_lite.load(fresh, tmp_path / "a")
    assert torch.equal(model(IDS), fresh(IDS))


def test_all_linear_means_linear() -> None:
    assert set(lora_lite.attach(Net(), LoRAConfig(rank=2, targets="all-linear"))) == {"mix", "head"}


@pytest.mark.parametrize(
    "option", [{"dilation": 2, "padding": "same"}, {"padding": 1, "padding_mode": "circular"}], ids=str
)
def test_pefts_convolution_has_neither_dilation_nor_padding_mode(
    option: dict[str, Any], tmp_path: Path
) -> None:
    """PEFT's merged layer is not its adapted one; lora_lite's are both PEFT's merged one."""
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3, **option)), torch.randn(1, 3, 6, 6)
    theirs = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=2, target_modules=["0"])).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(torch.randn_like(p) * 0.3 * p.requires_grad)
    theirs.save_pretrained(tmp_path)
    adapted = theirs(x)
    merged = theirs.merge_and_unload()(x)
    assert (adapted - merged).norm() > 0.1 * merged.norm()
    lora_lite.load_peft(model, tmp_path)
    torch.testing.assert_close(model(x), merged, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lora_lite.merge(model)(x), merged, rtol=1e-4, atol=1e-4)


def test_pefts_lookup_renormalises_its_factor() -> None:
    """max_norm in place on A: evaluating PEFT's model changes the adapter."""
    model = peft.get_peft_model(
        nn.Sequential(nn.Embedding(7, 12, max_norm=0.5)), peft.LoraConfig(r=2, target_modules=["0"])
    )
    A = model.base_model.model[0].lora_embedding_A["default"]
    with torch.no_grad():
        A.fill_(1.0)
        before = A.clone()
        model(IDS)
    assert not torch.equal(A, before)
