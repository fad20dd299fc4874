"""Each variant: its start, its equation, its gradients, the inputs it must take."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lora_lite
from lora_lite import AdapterConfig, DeLoRAConfig, DoRAConfig, LoRAConfig, PiSSAConfig
from lora_lite.variants.dora import Scale
from lora_lite.variants.hra import Reflect

from .conftest import CONFIGS, linear, perturb

BITWISE = {"lora", "dora", "ia3", "delora"}  # start at the base bit for bit, in any dtype
EPS = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 6e-3}


def dense(adapter: lora_lite.Variant, W: Tensor) -> Tensor:
    """The effective weight, by each paper's equation, with everything materialised in float64."""
    p = {name: t.detach().double() for name, t in adapter.state_dict().items()}
    match adapter:
        case lora_lite.variants.DoRA():
            V = W + adapter.scale * p["B"] @ p["A"]
            return p["m"][:, None] * V / V.norm(dim=1, keepdim=True)
        case lora_lite.variants.LoRA():
            return W + adapter.scale * p["B"] @ p["A"]
        case lora_lite.variants.IA3():
            return W * p["l"] if adapter.feedforward else p["l"][:, None] * W
        case lora_lite.variants.HRA():
            return W @ householder(p["U"], adapter.config.gram_schmidt)
        case lora_lite.variants.DeLoRA():
            norms = p["A"].norm(dim=1).clamp(min=1e-4) * p["B"].norm(dim=0).clamp(min=1e-4)
            xi = p["lambda_"] / adapter.config.rank / norms
            return W + p["B"] @ torch.diag(xi) @ p["A"] * p["w_norm"]
    raise AssertionError(adapter)


def householder(U: Tensor, gram_schmidt: bool) -> Tensor:
    H = torch.eye(U.shape[0], dtype=U.dtype)
    if gram_schmidt:
        Q = U @ torch.linalg.inv(torch.linalg.cholesky(U.T @ U)).T
        return H - 2 * Q @ Q.T
    for u in U.T:
        H = H - 2 * (H @ u)[:, None] * u / (u @ u)
    return H


def expected(adapter: lora_lite.Variant, layer: nn.Linear, x: Tensor) -> Tensor:
    W, b = layer.weight.detach().double(), layer.bias.detach().double()
    gate = isinstance(adapter, lora_lite.variants.IA3) and not adapter.feedforward
    return x.double() @ dense(adapter, W).T + (adapter.l.double() * b if gate else b)


@pytest.mark.parametrize("dtype", list(EPS), ids=str)
@pytest.mark.parametrize("input_grad", [False, True])
@pytest.mark.parametrize(("in_", "out"), [(12, 9), (9, 12), (5, 1), (4, 7)])
def test_forward_is_the_equation(
    config: AdapterConfig, dtype: torch.dtype, input_grad: bool, in_: int, out: int
) -> None:
    if isinstance(config, PiSSAConfig) and out < 4:
        config = PiSSAConfig(rank=1, alpha=3)
    layer = linear(in_, out, dtype)
    adapter = lora_lite.attach(layer, config)[""]
    perturb(layer)
    x = torch.randn(2, 3, in_, dtype=dtype, requires_grad=input_grad)
    want = expected(adapter, layer, x)
    got = layer(x)
    assert got.dtype == dtype
    assert (got.double() - want).norm() <= EPS[dtype] * (want.norm() + x.double().norm())


def test_starts_at_the_base(config: AdapterConfig) -> None:
    if config == CONFIGS["hra-gs"]:
        pytest.skip("I - 2QQᵀ is never the identity")
    for dtype, eps in EPS.items():
        layer, x = linear(dtype=dtype), torch.randn(5, 12, dtype=dtype)
        base = layer(x)
        lora_lite.attach(layer, config)
        if config.variant in BITWISE:
            assert torch.equal(layer(x), base), dtype
        assert (layer(x) - base).norm() <= eps * base.norm()


def test_inputs_of_every_shape(config: AdapterConfig) -> None:
    layer = linear()
    adapter = lora_lite.attach(layer, config)[""]
    perturb(layer)
    wide = torch.randn(4, 24)[:, ::2]
    for x in (torch.randn(12), wide, torch.randn(2, 3, 2, 12), torch.randn(0, 12), torch.randn(2, 0, 12)):
        before = x.clone()
        assert layer(x).shape == (*x.shape[:-1], 9)
        torch.testing.assert_close(layer(x).double(), expected(adapter, layer, x), rtol=1e-4, atol=1e-4)
        assert torch.equal(x, before)
    assert torch.equal(layer(input=wide), layer(wide))


@pytest.mark.parametrize("input_grad", [False, True])
def test_gradients_are_those_of_the_equation(config: AdapterConfig, input_grad: bool) -> None:
    if isinstance(config, DoRAConfig):
        pytest.skip("the norm is detached, so finite differences disagree; see test_dora_detaches_its_norm")
    layer = linear(6, 5, torch.float64)
    lora_lite.attach(layer, config)
    perturb(layer)
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=input_grad)
    parameters = list(lora_lite.parameters(layer))
    given = (*parameters, *([x] if input_grad else []))
    assert torch.autograd.gradcheck(lambda *_: layer(x), given)
    assert torch.autograd.gradgradcheck(lambda *_: layer(x), given)


def test_hra_per_example_gradients_and_a_frozen_adapter() -> None:
    """HRA has a backward pass of its own: vmap goes through it, and x has its gradient where U wants none."""
    layer = linear(6, 5, torch.float64)
    adapter = lora_lite.attach(layer, CONFIGS["hra"])[""]
    perturb(layer)
    adapter.requires_grad_(False)
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    (exact,) = torch.autograd.grad(layer(x).square().sum(), x)
    each = torch.func.vmap(torch.func.grad(lambda one: layer(one).square().sum()))(x.detach())
    torch.testing.assert_close(each, exact)


def test_dora_detaches_its_norm() -> None:
    layer = linear(6, 5, torch.float64)
    adapter = lora_lite.attach(layer, CONFIGS["dora"])[""]
    perturb(layer)
    x, G = torch.randn(3, 6, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    layer(x).backward(G)
    A, B, m, s = adapter.A.detach(), adapter.B.detach(), adapter.m.detach(), adapter.scale
    V = layer.weight.detach() + s * B @ A
    norm, dW = V.norm(dim=1), G.T @ x
    torch.testing.assert_close(adapter.B.grad, s * (m / norm)[:, None] * dW @ A.T)
    torch.testing.assert_close(adapter.A.grad, s * B.T @ ((m / norm)[:, None] * dW))
    torch.testing.assert_close(adapter.m.grad, (dW * V).sum(1) / norm)


def test_dora_passes_a_zero_row_through() -> None:
    layer = linear()
    with torch.no_grad():
        layer.weight[2] = 0
    x = torch.randn(5, 12)
    base = layer(x)
    adapter = lora_lite.attach(layer, CONFIGS["dora"])[""]
    y = layer(x)
    assert torch.equal(y, base)
    y.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in adapter.parameters())
    assert adapter.B.grad[2].norm() > 0


@pytest.mark.parametrize("alpha", [2.0, 16.0])
def test_pissa_takes_the_principal_part(alpha: float) -> None:
    layer = linear(dtype=torch.float64)
    W = layer.weight.detach().clone()
    adapter = lora_lite.attach(layer, PiSSAConfig(rank=3, alpha=alpha))[""]
    S = torch.linalg.svdvals(W)
    product = adapter.scale * adapter.B @ adapter.A
    torch.testing.assert_close(torch.linalg.svdvals(product)[:3], S[:3])
    torch.testing.assert_close(torch.linalg.svdvals(layer.weight)[:6], S[3:])
    torch.testing.assert_close(adapter.A @ adapter.A.T, adapter.B.T @ adapter.B)


def test_hra_has_no_dead_vector_at_the_start() -> None:
    layer = linear()
    adapter = lora_lite.attach(layer, CONFIGS["hra"])[""]
    layer(torch.randn(5, 12)).square().sum().backward()
    grad = adapter.U.grad
    assert (grad.norm(dim=0) > 1e-3).all()
    torch.testing.assert_close(grad[:, ::2], -grad[:, 1::2], rtol=1e-3, atol=1e-4)


def test_hra_gram_schmidt_starts_unpaired() -> None:
    adapter = lora_lite.attach(linear(), CONFIGS["hra-gs"])[""]
    assert torch.linalg.cond(adapter.U) < 10


def test_delora_keeps_the_norm_of_the_first_weight() -> None:
    layer = linear()
    adapter = lora_lite.attach(layer, CONFIGS["delora"])[""]
    torch.testing.assert_close(adapter.w_norm, layer.weight.norm(dim=0))
    assert "lora_lite.w_norm" in layer.state_dict()
    assert "w_norm" not in dict(adapter.named_parameters())


@pytest.mark.parametrize("config_of", [LoRAConfig, PiSSAConfig, DoRAConfig, DeLoRAConfig])
def test_dropout_is_on_the_adapter_alone_and_only_in_training(config_of: type[AdapterConfig]) -> None:
    layer, x = linear(), torch.randn(200, 12)
    lora_lite.attach(layer, config_of(rank=4, dropout=0.5))
    perturb(layer)
    layer.train()
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    state = torch.get_rng_state()
    assert torch.equal(layer(x), layer(x))
    assert torch.equal(torch.get_rng_state(), state)


def test_no_random_numbers_without_dropout(config: AdapterConfig) -> None:
    layer = linear()
    lora_lite.attach(layer, config)
    state = torch.get_rng_state()
    layer.train()(torch.randn(3, 12, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(torch.get_rng_state(), state)


def test_under_autocast(config: AdapterConfig) -> None:
    layer, x = linear(), torch.randn(5, 12)
    adapter = lora_lite.attach(layer, config)[""]
    perturb(layer)
    for grad in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x.requires_grad_(grad))
        want = expected(adapter, layer, x)
        assert y.dtype == torch.bfloat16
        assert (y.double() - want).norm() <= 5e-2 * (want.norm() + x.norm())
        y.sum().backward()


def test_keeps_no_more_than_skinny_tensors(config: AdapterConfig) -> None:
    layer = linear(256, 256)
    lora_lite.attach(layer, config)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(torch.randn(2, 256, requires_grad=True))
    own = {t.untyped_storage().data_ptr() for t in (*layer.parameters(), *layer.buffers())}
    sizes = [t.numel() for t in kept if t.untyped_storage().data_ptr() not in own]
    assert max(sizes, default=0) <= 256 * 4


def test_autocast_does_not_round_doras_norm() -> None:
    """At the start the gain is one, so that under bf16 autocast the output is the layer's own."""
    layer, x = linear(64, 64), torch.randn(32, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        base = layer(x)
    lora_lite.attach(layer, CONFIGS["dora"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), base)


def test_autocast_does_not_round_hras_backward_pass() -> None:
    x, rows = torch.randn(8, 64, requires_grad=True), torch.randn(4, 64)
    M = torch.eye(4) / 2 + torch.randn(4, 4).triu(1)
    found = []
    for inside in (False, True):
        y = Reflect.apply(x, rows, M)[0].square().sum()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            found.append(torch.autograd.grad(y, x)[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-6)


def test_doras_row_norms_where_they_cancel() -> None:
    """s B A = -(1 - 1e-3) W leaves a thousandth of W, of which the expanded square would keep no digit."""
    layer = linear(12, 9)
    adapter = lora_lite.attach(layer, DoRAConfig(rank=9, alpha=9))[""]
    W = layer.weight.detach()
    with torch.no_grad():
        adapter.A.copy_(W)
        adapter.B.copy_(-(1 - 1e-3) * torch.eye(9))
    exact = (W.double() + adapter.B.double() @ adapter.A.double()).norm(dim=1)
    torch.testing.assert_close(adapter.row_norm(W).double(), exact.detach(), rtol=1e-3, atol=0)
    square, own = adapter._expanded(W)
    assert not (square >= own / 4).any()


def test_doras_own_backward_pass_is_autograds() -> None:
    """First and second derivatives, of every input, with a bias and with none."""
    y, h, B, g, b = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        for shape in ((4, 5), (4, 3), (5, 3), (5,), (5,))
    )
    for shift in (b.detach(), None):
        want = g * (y + h @ B.T) + (0 if shift is None else (1 - g) * shift)
        torch.testing.assert_close(Scale.apply(y, h, B, g, shift), want)
        assert torch.autograd.gradcheck(lambda *a, s=shift: Scale.apply(*a, s), (y, h, B, g))
        assert torch.autograd.gradgradcheck(lambda *a, s=shift: Scale.apply(*a, s), (y, h, B, g))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_doras_dropout_is_the_equation(dtype: torch.dtype) -> None:
    """The dropped input goes through W too; what is not dropped is the base's own output."""
    layer = linear(dtype=dtype)
    adapter = lora_lite.attach(layer, DoRAConfig(rank=4, alpha=6, dropout=0.5))[""]
    perturb(layer)
    x = torch.randn(7, 12, dtype=dtype)
    torch.manual_seed(5)
    y = layer(x)
    torch.manual_seed(5)
    dropped = adapter.dropped(x).double()
    W, b = layer.weight.detach().double(), layer.bias.detach().double()
    want = x.double() @ W.T + b + dropped @ (dense(adapter, W) - W).T
    assert (y.double() - want).norm() <= EPS[dtype] * want.norm()
