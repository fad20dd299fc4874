"""IA3's ``feedforward_modules`` match as bare endings: "fc" also catches "attn_fc", whose input is then gated."""

import peft
from torch import nn


class Block(nn.Module):
    """Two layers, one name the ending of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.attn_fc, self.fc = nn.Linear(4, 3), nn.Linear(4, 3)


config = peft.IA3Config(target_modules=["attn_fc", "fc"], feedforward_modules=["fc"])
tuned = peft.get_peft_model(Block(), config).base_model.model
sides = {name: getattr(tuned, name).is_feedforward for name in ("attn_fc", "fc")}
print(f"gates on the input: {sides}; gate of attn_fc: {tuple(tuned.attn_fc.ia3_l['default'].shape)}")
assert sides == {"attn_fc": True, "fc": True}
