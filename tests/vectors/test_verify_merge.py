"""verify-merge names what is wrong with a merge, accuses no right one, and says so where the bits cannot tell."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.checkpoints import merge_judgement as judgement
from harness.checkpoints.__main__ import main
from harness.checkpoints.merge_judgement import Judgement
from harness.checkpoints.verify_merge import Verification, exit_code
from oracles.vectors.corpus import Vector, vectors
from oracles.vectors.unreadable import Unreadable

APPLIED = [v for v in vectors() if v.about["expect"] == "apply"]


def _write(folder: Path, tensors: dict[str, Tensor], dtype: torch.dtype | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    held = {n: (t.to(dtype) if dtype else t).contiguous().clone() for n, t in tensors.items()}
    save_file(held, folder / "model.safetensors")
    return folder


def _verify(vector: Vector, merged: dict[str, Tensor], folder: Path) -> list[Judgement]:
    dtype = getattr(torch, vector.about["flags"]["base_dtype"])
    verification = Verification(vector.base, vector.adapter, _write(folder, merged, dtype))
    return list(verification)


@pytest.mark.parametrize("vector", APPLIED, ids=lambda v: v.id)
def test_a_right_merge_is_verified(vector: Vector, tmp_path: Path) -> None:
    found = _verify(vector, vector.merged, tmp_path)
    assert exit_code(found) == 0, [j for j in found if j.verdict != judgement.VERIFIED]


def _first_of_each_reading() -> list[tuple[Vector, str]]:
    seen: dict[str, tuple[Vector, str]] = {}
    for vector in APPLIED:
        for wrong in vector.about["wrong_readings"]:
            seen.setdefault(wrong["id"], (vector, wrong["id"]))
    return list(seen.values())


VERDICTS = {
    "not_applied": judgement.NOT_APPLIED,
    "applied_twice": judgement.TWICE,
    "layout.transposed": judgement.TRANSPOSED,
    "scale.over_rank": judgement.SCALE,
    "scale.one": judgement.SCALE,
    "pattern.rank": judgement.SCALE,
    "dora.plain_lora": judgement.MISREAD,
    "hra.reversed": judgement.MISREAD,
    "tie.follows": judgement.CHANGED,
}


@pytest.mark.parametrize(
    ("vector", "reading"), _first_of_each_reading(), ids=lambda x: x if isinstance(x, str) else x.id
)
def test_a_wrong_merge_is_named(vector: Vector, reading: str, tmp_path: Path) -> None:
    found = _verify(vector, vector.reading(reading), tmp_path)
    assert exit_code(found) == 1
    if reading in VERDICTS:
        verdicts = {j.verdict for j in found} - {judgement.VERIFIED}
        assert VERDICTS[reading] in verdicts


# Below the rounding: a bfloat16 base whose numbers the update moves by less than a unit in the last place.


def _adapter(folder: Path, A: Tensor, B: Tensor, alpha: float) -> Path:
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": A.shape[0], "lora_alpha": alpha, "target_modules": ["q"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    keys = {"base_model.model.q.lora_A.weight": A, "base_model.model.q.lora_B.weight": B}
    save_file(keys, folder / "adapter_model.safetensors")
    return folder


def _small(tmp_path: Path, size: float, share: float, dtype: torch.dtype = torch.bfloat16) -> Judgement:
    """A base of 96 x 160 in bfloat16, an update of ``size`` times it, merged with ``share`` of the update."""
    generator = torch.Generator().manual_seed(5)
    W = torch.randn(96, 160, generator=generator).bfloat16()
    A, B = torch.randn(3, 160, generator=generator), torch.randn(96, 3, generator=generator) * size / 2
    base = _write(tmp_path / "base", {"q.weight": W})
    adapter = _adapter(tmp_path / "adapter", A, B, alpha=6)
    delta = 2 * (B @ A)
    merged = _write(
        tmp_path / "merged", {"q.weight": (W.float() + share * delta).to(torch.bfloat16).to(dtype)}
    )
    verification = Verification(base, adapter, merged)
    return next(iter(verification))


@pytest.mark.parametrize(
    ("share", "verdict"),
    [
        (1.0, judgement.VERIFIED),
        (0.0, judgement.NOT_APPLIED),
        (2.0, judgement.TWICE),
        (0.5, judgement.SCALE),
        (-1.0, judgement.SCALE),
    ],
)
def test_the_replay_decides_below_the_rounding(tmp_path: Path, share: float, verdict: str) -> None:
    assert _small(tmp_path, 5e-4, share).verdict == verdict


def test_an_update_that_no_bit_holds_is_inconclusive(tmp_path: Path) -> None:
    found = _small(tmp_path, 1e-8, 1.0)
    assert found.verdict == judgement.INCONCLUSIVE
    assert exit_code([found]) == 3


@pytest.mark.parametrize("share", [1.05, 0.9, 8.0])
def test_an_unnamed_scale_is_measured(tmp_path: Path, share: float) -> None:
    found = _small(tmp_path, 0.2, share)
    assert found.verdict == judgement.SCALE
    assert found.found == pytest.approx(share, rel=0.02)


def _four_bits(W: Tensor) -> Tensor:
    """Every 64 entries on 15 levels of their largest one."""
    runs = W.reshape(-1, 64)
    unit = runs.abs().amax(1, keepdim=True) / 7
    return ((runs / unit).round() * unit).reshape(W.shape)


@pytest.mark.parametrize(("size", "verdict"), [(0.3, judgement.VERIFIED), (3e-3, judgement.INCONCLUSIVE)])
def test_a_merge_on_a_four_bit_grid(tmp_path: Path, size: float, verdict: str) -> None:
    found = _grid_case(tmp_path, size, 1.0)
    assert found.verdict == verdict
    assert "4-bit" in found.reason


def test_an_update_lost_on_the_grid_is_named(tmp_path: Path) -> None:
    """The grid would hold it, and it is not there."""
    assert _grid_case(tmp_path, 0.3, 0.0).verdict == judgement.REQUANTISED


def _grid_case(tmp_path: Path, size: float, share: float) -> Judgement:
    generator = torch.Generator().manual_seed(5)
    W = torch.randn(96, 160, generator=generator)
    A, B = torch.randn(4, 160, generator=generator), torch.randn(96, 4, generator=generator) * size / 2
    base = _write(tmp_path / "base", {"q.weight": W.bfloat16()})
    adapter = _adapter(tmp_path / "adapter", A, B, alpha=4)
    merged = _write(tmp_path / "merged", {"q.weight": _four_bits(W + share * B @ A)})
    verification = Verification(base, adapter, merged)
    return next(iter(verification))


def test_another_adapter_is_no_scale_of_this_one(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    W = torch.randn(96, 160, generator=generator)
    A, B = torch.randn(4, 160, generator=generator), torch.randn(96, 4, generator=generator)
    base = _write(tmp_path / "base", {"q.weight": W})
    adapter = _adapter(tmp_path / "adapter", A, B, alpha=4)
    merged = _write(tmp_path / "merged", {"q.weight": W + B.flip(1) @ A})
    verification = Verification(base, adapter, merged)
    found = list(verification)
    assert [j.verdict for j in found] == [judgement.OTHER]


# The command


def _command(vector: Vector, merged: Path) -> list[str]:
    return [
        "verify-merge",
        "--base",
        str(vector.base),
        "--adapter",
        str(vector.adapter),
        "--merged",
        str(merged),
    ]


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vector = next(v for v in APPLIED if v.id == "shards.lora")
    right = _write(tmp_path / "right", vector.merged, torch.float32)
    assert main(_command(vector, right)) == 0
    assert "4 tensors adapted: 4 verified; 4 of 4 others as in the base" in capsys.readouterr().out
    assert main(_command(vector, vector.base)) == 1
    assert "the update is not applied" in capsys.readouterr().out
    assert main(_command(vector, tmp_path / "nowhere")) == 2
    assert capsys.readouterr().err.startswith("verify-merge: there is no ")


def test_a_tensor_that_nobody_adapts_must_not_change(tmp_path: Path) -> None:
    vector = next(v for v in APPLIED if v.id == "lora.one_module")
    merged = dict(vector.merged)
    merged["head.weight"] = merged["head.weight"] + 0.25
    found = {j.tensor: j.verdict for j in _verify(vector, merged, tmp_path)}
    assert found.pop("head.weight") == judgement.CHANGED
    assert set(found.values()) == {judgement.VERIFIED}


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    vector = next(v for v in APPLIED if v.id == "lora.one_module")
    merged = {n: t for n, t in vector.merged.items() if n != "layers.1.q_proj.bias"}
    found = {j.tensor: j.verdict for j in _verify(vector, merged, tmp_path)}
    assert found["layers.1.q_proj.bias"] == judgement.MISSING


# Quantised formats that are not read

PACKED = {
    "bitsandbytes": {
        "layers.0.q_proj.weight": torch.zeros(18, 1, dtype=torch.uint8),
        "layers.0.q_proj.weight.absmax": torch.ones(1),
        "layers.0.q_proj.weight.quant_map": torch.ones(16),
        "layers.0.q_proj.weight.quant_state.bitsandbytes__nf4": torch.zeros(8, dtype=torch.uint8),
    },
    "GPTQ": {
        "layers.0.q_proj.weight": None,
        "layers.0.q_proj.qweight": torch.zeros(1, 7, dtype=torch.int32),
        "layers.0.q_proj.scales": torch.ones(1, 7).half(),
        "layers.0.q_proj.g_idx": torch.zeros(5, dtype=torch.int32),
    },
}


@pytest.mark.parametrize("form", PACKED)
def test_a_packed_format_is_no_accusation(form: str, tmp_path: Path) -> None:
    vector = next(v for v in APPLIED if v.id == "lora.one_module")
    tensors = {**{n: t.float() for n, t in vector.merged.items()}, **PACKED[form]}
    merged = _write(tmp_path, {n: t for n, t in tensors.items() if t is not None})
    found = list(Verification(vector.base, vector.adapter, merged))
    assert exit_code(found) == 3
    unsure = {j.tensor for j in found if j.verdict == judgement.INCONCLUSIVE}
    assert unsure == set(PACKED[form])


def test_a_tensor_that_is_missing_is_still_named_beside_a_packed_one(tmp_path: Path) -> None:
    vector = next(v for v in APPLIED if v.id == "lora.one_module")
    tensors = {**{n: t.float() for n, t in vector.merged.items()}, **PACKED["bitsandbytes"]}
    del tensors["layers.1.q_proj.weight"]
    found = list(Verification(vector.base, vector.adapter, _write(tmp_path, tensors)))
    assert [j.tensor for j in found if j.verdict == judgement.MISSING] == ["layers.1.q_proj.weight"]


@pytest.mark.parametrize("change", [0, 1])
def test_whole_numbers_that_the_base_has_too_are_compared(change: int, tmp_path: Path) -> None:
    vector = next(v for v in APPLIED if v.id == "lora.one_module")
    ids = torch.arange(4)
    base = _write(tmp_path / "base", {**vector.base_tensors, "position_ids": ids})
    right = {n: t.float() for n, t in vector.merged.items()}
    merged = _write(tmp_path / "merged", {**right, "position_ids": ids + change})
    found = {j.tensor: j.verdict for j in Verification(base, vector.adapter, merged)}
    assert found["position_ids"] == (judgement.CHANGED if change else judgement.VERIFIED)
    assert exit_code(list(Verification(base, vector.adapter, merged))) == change


# inspect


def _vector(name: str) -> Vector:
    return next(v for v in vectors() if v.id == name)


def test_inspect_tells_the_scale_of_every_module(capsys: pytest.CaptureFixture[str]) -> None:
    vector = _vector("lora.both_patterns.rslora")
    assert main(["inspect", str(vector.adapter), "--base", str(vector.base), "--json"]) == 0
    rows = {r["module"]: r for r in json.loads(capsys.readouterr().out)["modules"]}
    assert rows["layers.0.q_proj"]["scale"] == pytest.approx(2 / 5**0.5)
    assert rows["layers.0.k_proj"]["scale"] == pytest.approx(7 / 3**0.5)
    delta = vector.part("delta/")["layers.0.q_proj.weight"]
    assert rows["layers.0.q_proj"]["norm"] == pytest.approx(float(delta.norm()))
    share = float(delta.norm() / vector.untied["layers.0.q_proj.weight"].norm())
    assert rows["layers.0.q_proj"]["share"] == pytest.approx(share)


@pytest.mark.parametrize(
    "name",
    [
        "dora.conv2d.three_by_three",
        "pissa.alpha",
        "ia3.conv2d.input",
        "hra.odd",
        "delora.rank_three",
        "experts.in_out.both",
        "vera.shared",
    ],
)
def test_inspect_measures_every_methods_update(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    vector = _vector(name)
    assert main(["inspect", str(vector.adapter), "--base", str(vector.base), "--json"]) == 0
    norms = sorted(row["norm"] for row in json.loads(capsys.readouterr().out)["modules"])
    assert norms == pytest.approx(sorted(float(d.norm()) for d in vector.part("delta/").values()))


@pytest.mark.parametrize("name", ["dora.linear", "ia3.output", "hra.even", "delora.rank_two", "vera.shared"])
def test_inspect_needs_no_base(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(_vector(name).adapter)]) == 0
    assert capsys.readouterr().out.startswith(name.partition(".")[0])


def test_bare_parameters_of_another_method_are_refused(tmp_path: Path) -> None:
    """PEFT puts LoRA alone on them; the file must not be read as if it were one."""
    vector = _vector("experts.out_in.first")
    folder = shutil.copytree(vector.adapter, tmp_path / "adapter")
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace('"init_lora_weights": true', '"init_lora_weights": "pissa"'))
    with pytest.raises(Unreadable, match=r"for parameters of mlp\.experts, on which pissa is not defined"):
        Verification(vector.base, folder, vector.base)


def test_half_a_pair_of_an_experts_factors_is_refused(tmp_path: Path) -> None:
    vector = _vector("experts.out_in.first")
    folder = shutil.copytree(vector.adapter, tmp_path / "adapter")
    path = folder / "adapter_model.safetensors"
    save_file({n: t for n, t in load_file(path).items() if "lora_A" in n}, path)
    with pytest.raises(Unreadable, match="no assignment fits"):
        Verification(vector.base, folder, vector.base)


def test_inspect_tells_what_is_odd(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = _adapter(tmp_path / "adapter", torch.ones(2, 5), torch.zeros(7, 2), alpha=3)
    assert main(["inspect", str(adapter)]) == 1
    assert "B = 0: the update is zero" in capsys.readouterr().out
    renamed = _vector("refuse.renamed_modules")
    assert main(["inspect", str(renamed.adapter), "--base", str(renamed.base)]) == 1
    assert "which the base does not have" in capsys.readouterr().out
