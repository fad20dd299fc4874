"""``modules_to_save`` matches any ending of a name: "norm" also copies "out_norm", which is then trained and saved."""

import peft
from peft.utils import ModulesToSaveWrapper
from torch import nn


class Model(nn.Module):
    """One name the ending of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.proj, self.norm, self.out_norm = nn.Linear(4, 4), nn.LayerNorm(4), nn.LayerNorm(4)


config = peft.LoraConfig(target_modules=["proj"], modules_to_save=["norm"])
tuned = peft.get_peft_model(Model(), config).base_model.model
found = [name for name, module in tuned.named_modules() if isinstance(module, ModulesToSaveWrapper)]
print(f"saved whole for modules_to_save=['norm']: {found}")
assert found == ["norm", "out_norm"]
