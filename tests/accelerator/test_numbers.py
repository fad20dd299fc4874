"""What is asked of an accelerator, asked of the processor: a right layer is quiet, a wrong one is found."""

from __future__ import annotations

import pytest

from harness.accelerator import __main__ as command
from harness.accelerator.numbers_there import PRECISIONS, measure
from harness.subjects.lora_lite import LoraLite
from tests.subjects import wrapped
from tests.subjects.broken import SqrtRank


@pytest.mark.parametrize("precision", PRECISIONS, ids=lambda p: p.name)
def test_a_right_layer_is_quiet(precision: object) -> None:
    assert measure(LoraLite(), "dora", precision, "cpu").holds(precision)  # type: ignore[arg-type,attr-defined]


@pytest.mark.parametrize("precision", PRECISIONS, ids=lambda p: p.name)
def test_a_wrong_scale_is_found(precision: object) -> None:
    found = measure(wrapped.Library({"lora": SqrtRank}), "lora", precision, "cpu")  # type: ignore[arg-type]
    assert not found.holds(precision)  # type: ignore[arg-type]
    assert not found.trouble


def test_what_is_raised_is_told() -> None:
    found = measure(LoraLite(), "lora", PRECISIONS[0], "nowhere")
    assert found.trouble.startswith("RuntimeError: ")
    assert not found.holds(PRECISIONS[0])


def test_without_an_accelerator_nothing_passes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "found_device", lambda: None)
    assert command.main([]) == 2
    assert "torch finds none on this machine" in capsys.readouterr().err


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 0 and a table."""
    assert command.main(["--device", "cpu", "--variants", "lora", "--subject", "lora_lite"]) == 0
    assert "worst ratio on cpu" in capsys.readouterr().out
