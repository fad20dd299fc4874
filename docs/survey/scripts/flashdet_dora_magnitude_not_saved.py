# /// script
# dependencies = ["flashdet==1.2.1", "torch==2.13.0", "numpy"]
# ///
from flashdet.models.lora import apply_lora, get_lora_state_dict
from torch import nn

model = nn.Module()
model.backbone = nn.Sequential(nn.Linear(4, 3))
apply_lora(model, rank=2, variant="dora", target_modules=["backbone"])
trained = [name for name, p in model.named_parameters() if p.requires_grad]
print("expected", trained, "got", list(get_lora_state_dict(model)))
