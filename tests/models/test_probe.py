"""The probe on a tiny model and a tiny folder: its numbers, its tables, its page, its refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness.cases.tiny_models import ModelCase
from harness.probe import __main__ as program
from harness.probe import make_large, page, plots, pretrained, sections, stream
from harness.probe.comparison import Compared, compare
from harness.probe.pretrained import Pretrained
from harness.probe.spectrum import Factors, parts
from harness.subjects.lora_lite import LoraLite
from oracles.implementation import AdapterSpec
from oracles.peft import Peft


@pytest.fixture(scope="module")
def tiny() -> Pretrained:
    case = ModelCase(AdapterSpec("lora"), "llama")
    ids = case.inputs["input_ids"]
    return Pretrained("a <tiny> model", case.base().eval(), (ids,), ids)


@pytest.fixture(scope="module")
def compared(tiny: Pretrained) -> list[Compared]:
    specs = [AdapterSpec(v, rank=2, alpha=2.0) for v in sorted(LoraLite.variants)]
    return [compare(LoraLite(), Peft(), tiny, spec, 3, lambda what: None) for spec in specs]


def test_both_start_at_the_base_and_follow_one_loss(compared: list[Compared]) -> None:
    for each in compared:
        assert not each.subject.note
        assert not each.peft.note
        assert each.subject.layers == each.peft.layers > 0
        assert each.subject.trainable == each.peft.trainable
        assert each.subject.logits["fp32"].relative < 1e-5
        assert each.peft.logits["bf16"].relative < 5e-2
        assert len(each.subject.losses) == 3
        assert each.losses_apart < 1e-4
        assert each.subject.gradients == pytest.approx(each.peft.gradients, rel=1e-3)
        assert each.subject.reloaded is not None
        assert each.subject.reloaded.largest < 1e-5


def test_factors_in_float32_are_closer_the_more_the_factors_hold() -> None:
    factors = Factors.of(torch.randn(24, 16, generator=torch.Generator().manual_seed(0)))
    wide = [factors.error(r, residual=True, factors=False) for r in (1, 8, 16)]
    narrow = [factors.error(r, residual=True, factors=True) for r in (1, 8, 16)]
    assert wide[0] > wide[1] > wide[2]
    assert all(n > w for n, w in zip(narrow, wide, strict=True))
    assert factors.error(4, residual=False, factors=False) < 1e-6
    assert factors.kept(16) == pytest.approx(1.0)


def test_the_report_is_marked_and_replaces_itself(tiny: Pretrained, compared: list[Compared]) -> None:
    found = sections.Findings("python -m harness.probe", ["A | model."], compared)
    found.parts, found.sweeps = parts(tiny, list(compared[1].peft.by_layer["bf16"]), compared[1].spec)
    assert [p.source.partition(":")[0] for p in found.parts] == ["arithmetic", *["weights"] * 3]
    section = sections.markdown(found)
    once = sections.placed("# Review\n", section)
    assert once.startswith("# Review\n\n" + sections.BEGIN)
    assert sections.placed(once, section) == once
    assert sections.placed(once + "after\n", "new\n").endswith("new\nafter\n")
    assert len(sections.tables(found)) == 9


def test_the_page_is_self_contained_and_escaped(tiny: Pretrained, compared: list[Compared]) -> None:
    _, sweeps = parts(tiny, list(compared[1].peft.by_layer["bf16"]), compared[1].spec)
    written = page.html(sections.Findings("a <b>", ["<script>"], compared, sweeps=sweeps), 2)
    assert "<script" not in written
    assert "a &lt;b&gt;" in written
    assert "http" not in written
    assert written.count("<svg") == written.count("</svg>") >= 12
    assert "nan" not in written


def test_a_line_stays_within_the_picture() -> None:
    drawn = plots.chart("t", [plots.Line("a & b", [1.0, 2.0, 4.0], [1e-9, 0.0, 3.0])], "x", log_x=True)
    assert "a &amp; b" in drawn
    inside = drawn.split('points="')[1].split('"')[0].split()
    assert all(0 <= float(c) <= plots.WIDTH for point in inside for c in point.split(","))
    assert plots.chart("t", [], "x") == ""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in (("HIDDEN", 16), ("INNER", 32), ("KEYS", 8), ("POOL", 1 << 12), ("PER_SHARD", 2)):
        monkeypatch.setattr(make_large, name, value)
    assert make_large.write(tmp_path, 1e-5) == 3
    return tmp_path


def test_shards_are_safetensors(folder: Path) -> None:
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) == 2
    assert load_file(files[1])["model.layers.2.mlp.down_proj.weight"].shape == (16, 32)


def test_a_folder_is_audited_weight_by_weight(folder: Path) -> None:
    specs = [AdapterSpec(v, rank=2, alpha=2.0) for v in ("lora", "pissa", "ia3")]
    asked = stream.plan(folder, specs, None)
    seen: list[str] = []
    found = stream.audit(asked, {"lora_lite": LoraLite(), "PEFT": Peft()}, lambda p: seen.append(p.layer))
    assert len(seen) == len(set(seen)) == 12  # q, k, v, down of three blocks
    assert found["lora"].gaps == {"lora_lite": [0.0] * 6, "PEFT": [0.0] * 6}
    assert len(found["ia3"].gaps["PEFT"]) == 9
    assert 0 < max(found["pissa"].gaps["lora_lite"]) < 1e-2
    place = next(iter(asked))
    assert torch.equal(place.read(), load_file(place.file)[place.key])


def test_what_cannot_be_had_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--stream", str(tmp_path)], ["--variants", "x"], ["--subject", "nothing"]):
        assert program.main(words) == 2
        said = capsys.readouterr().err
        assert said.startswith("probe: ")
        assert said.count("\n") == 1


def test_a_missing_package_says_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(pretrained.NoModel, match="run `make probe`"):
        pretrained.load(None)


def test_the_command_runs_a_folder(folder: Path, tmp_path: Path) -> None:
    report, html = tmp_path / "r.md", tmp_path / "p.html"
    words = ["--stream", str(folder), "--variants", "lora", "--targets", "q_proj,up_proj", "--threads", "1"]
    assert program.main([*words, "--report", str(report), "--html", str(html)]) == 0
    assert "| lora | PEFT | 6 | 0 | 0 |" in report.read_text(encoding="utf-8")
    assert str(tmp_path) not in report.read_text(encoding="utf-8")
    assert "Layer by layer, streamed" in html.read_text(encoding="utf-8")
