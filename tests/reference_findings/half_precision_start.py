"""Over a bfloat16 base PEFT rounds DoRA's m, DeLoRA's w_norm and PiSSA's residual to bfloat16 before keeping them."""

import peft
import torch
from torch import nn


def start(config: peft.PeftConfig) -> tuple[nn.Module, nn.Linear]:
    torch.manual_seed(0)
    base = nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
    plain = nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
    plain.load_state_dict(base.state_dict())
    return peft.get_peft_model(nn.Sequential(base), config), plain


def changed(config: peft.PeftConfig) -> float:
    """The share of the outputs of step 0 that are not the base's, which LoRA's start changes none of."""
    model, plain = start(config)
    x = torch.randn(256, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    return float((model(x) != plain(x)).double().mean())


shares = {
    "LoRA": changed(peft.LoraConfig(r=8, target_modules=["0"])),
    "DoRA": changed(peft.LoraConfig(r=8, target_modules=["0"], use_dora=True)),
    "PiSSA": changed(peft.LoraConfig(r=8, target_modules=["0"], init_lora_weights="pissa")),
}
print({name: f"{share:.0%}" for name, share in shares.items()})
assert shares["LoRA"] == 0
assert shares["DoRA"] > 0.1
assert shares["PiSSA"] > 0.1

model, plain = start(peft.DeloraConfig(r=8, target_modules=["0"]))
w_norm = model.base_model.model[0].delora_w_norm["default"]
exact = plain.weight.detach().double().norm(dim=0)
print(
    f"w_norm is kept in {w_norm.dtype}, off by up to {float((w_norm.double() / exact - 1).abs().max()):.1e}"
)
assert torch.equal(w_norm, w_norm.bfloat16().to(w_norm.dtype))
assert float((w_norm.double() / exact - 1).abs().max()) > 1e-3
