"""An adapter saved in one process works in another, and what does not fit the model is refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import lora_lite
from harness.cases.tiny_models import ModelCase, logits
from oracles.implementation import AdapterSpec
from oracles.peft import BINDINGS

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = sorted(lora_lite.VARIANTS)

CHILD = """
import json, sys, torch, lora_lite, peft
from safetensors.torch import load_file, save_file
from harness.cases.tiny_models import ModelCase, logits
from oracles.implementation import AdapterSpec
torch.set_num_threads(1)
for variant, architecture, folder in json.loads(sys.argv[1]):
    case = ModelCase(AdapterSpec(variant, rank=2, alpha=3.0), architecture, seed=5)
    ours, theirs = case.base(), case.base()
    lora_lite.load(ours, f"{folder}/ours.safetensors")
    loaded = peft.PeftModel.from_pretrained(theirs, f"{folder}/theirs")
    with torch.no_grad():
        found = {"ours": logits(ours, case), "theirs": logits(loaded.base_model.model, case)}
    save_file({k: v.contiguous() for k, v in found.items()}, f"{folder}/child.safetensors")
"""


def case_of(variant: str, architecture: str) -> ModelCase:
    return ModelCase(AdapterSpec(variant, rank=2, alpha=3.0), architecture, seed=5)


def attached(case: ModelCase, away: float = 0.1) -> torch.nn.Module:
    """The case's model with lora_lite's adapters, moved off their start."""
    model = case.base()
    values = {} if case.spec.variant == "ia3" else {"rank": case.spec.rank}
    if case.spec.variant in ("lora", "pissa", "dora"):
        values["alpha"] = case.spec.alpha
    lora_lite.attach(model, lora_lite.config_from_dict({"variant": case.spec.variant, **values}))
    moved(lora_lite.parameters(model), away)
    return model


def moved(parameters: object, away: float) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:  # type: ignore[attr-defined]
            parameter.add_(torch.randn(parameter.shape, generator=generator) * away)


def of_peft(case: ModelCase) -> peft.PeftModel:
    """The same of PEFT."""
    config = BINDINGS[case.spec.variant].config(case.spec, [])
    config.target_modules = None
    if hasattr(config, "feedforward_modules"):
        config.feedforward_modules = None
    model = peft.get_peft_model(case.base(), config)
    moved((p for p in model.parameters() if p.requires_grad), 0.1)
    return model


def saved(case: ModelCase, folder: Path) -> dict[str, torch.Tensor]:
    """Both adapters in files, and the logits they should give."""
    torch.manual_seed(0)
    ours, theirs = attached(case), of_peft(case)
    lora_lite.save(ours, folder / "ours.safetensors")
    theirs.save_pretrained(folder / "theirs")
    with torch.no_grad():
        return {"ours": logits(ours, case), "theirs": logits(theirs.base_model.model, case)}


def size(path: Path) -> int:
    return (
        sum(f.stat().st_size for f in path.rglob("*.safetensors")) if path.is_dir() else path.stat().st_size
    )


@pytest.mark.filterwarnings("ignore")
def test_adapters_of_one_process_work_in_another(
    tmp_path: Path, record_property: pytest.FixtureRequest
) -> None:
    asked, expected = [], {}
    for variant in VARIANTS:
        folder = tmp_path / variant
        folder.mkdir()
        architecture = "llama" if variant in ("lora", "pissa", "ia3") else "bert"
        expected[variant] = saved(case_of(variant, architecture), folder)
        asked.append((variant, architecture, str(folder)))
    command = [sys.executable, "-c", CHILD, json.dumps(asked)]
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "PATH": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for variant, _, folder in asked:
        found = load_file(Path(folder) / "child.safetensors")
        for side, exact in expected[variant].items():
            assert torch.equal(found[side], exact), (variant, side)
        sizes = size(Path(folder) / "ours.safetensors"), size(Path(folder) / "theirs")
        record_property(variant, sizes)  # type: ignore[operator]
        assert sizes[0] <= 3 * sizes[1], (variant, sizes)  # PiSSA's holds its start too: no SVD at loading


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A PiSSA adapter of the llama with seed 5."""
    path = tmp_path / "adapter.safetensors"
    lora_lite.save(attached(case_of("pissa", "llama")), path)
    return path


def refused(model: torch.nn.Module, file: Path, words: str) -> None:
    """Loading is a ValueError with those words, and the model stays as it was."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainable = [p.requires_grad for p in model.parameters()]
    with pytest.raises(ValueError, match=words):
        lora_lite.load(model, file)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert [p.requires_grad for p in model.parameters()] == trainable
    assert not lora_lite.adapters(model)


def test_another_architecture_is_refused_by_the_layers_name(file: Path) -> None:
    refused(
        case_of("pissa", "bert").base(), file, r"model\.layers\.0\.self_attn\.q_proj.*BertForMaskedLM lacks"
    )


def test_another_base_is_refused_by_the_layers_name(file: Path) -> None:
    other = ModelCase(AdapterSpec("pissa", rank=2), "llama", seed=6).base()
    refused(other, file, r"layers\.0\.self_attn\.q_proj.*base weight is not the one")


def test_a_model_that_lacks_a_layer_is_refused_by_its_name(file: Path) -> None:
    model = case_of("pissa", "llama").base()
    del model.model.layers[1]  # type: ignore[union-attr, operator]
    refused(model, file, r"layers\.1\.self_attn\.q_proj")


def test_a_file_that_lacks_a_layers_tensor_is_refused_by_its_name(file: Path) -> None:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as handle:
        metadata = handle.metadata()
    tensors = load_file(file)
    del tensors["model.layers.1.self_attn.v_proj.A"]
    save_file(tensors, file, metadata=metadata)
    refused(case_of("pissa", "llama").base(), file, r"layers\.1\.self_attn\.v_proj")
