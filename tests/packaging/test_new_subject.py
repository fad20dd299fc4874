"""`new-subject`: what it writes can be audited, and what it cannot know it says."""

from __future__ import annotations

import io
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from adapter_conformance.new_subject import ASPECTS, main

from harness.subjects.remote.environment import metadata_of
from refs.vocabulary import ASKED_OF_SUBJECTS
from tests.packaging import toy

ASK = ["--library", "toylora", "--variants", "lora", "--layer", toy.LAYER]


def started(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "adapter_conformance", "new-subject", *arguments]
    return subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": str(toy.PACKAGE), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    toy.repository(tmp_path / "repository")
    monkeypatch.chdir(tmp_path / "repository")
    return tmp_path / "repository"


def test_a_subject_that_is_sound(library: Path) -> None:
    """Its tensors are found by their shapes, one of them the other way round."""
    done = started(library, "ToyLora", *ASK)
    assert done.returncode == 0, done.stderr
    assert "sound: a small lora layer was made" in done.stdout
    assert "SOURCES['targets'], what chooses the modules of a model" in done.stdout
    text = (library / "toy_lora.py").read_text()
    assert '"A": Slot(layer.down, lambda t: t.T),  # shape (r, in)' in text
    assert '"forward": "LoRALinear.forward"' in text
    assert "TO FILL IN" not in text
    assert metadata_of(library / "toy_lora.py") is None  # the library is here: it runs beside the audit
    assert tomllib.loads((library / "toy_lora.toml").read_text()) == {}
    workflow = yaml.safe_load((library / ".github/workflows/adapter-conformance.yml").read_text())
    assert any(
        "--subject toy_lora.py:ToyLora" in s.get("run", "") for s in workflow["jobs"]["audit"]["steps"]
    )


def install_step(library: Path) -> dict[str, Any]:
    """The workflow's step that installs the audit."""
    workflow = yaml.safe_load((library / ".github/workflows/adapter-conformance.yml").read_text())
    return next(s for s in workflow["jobs"]["audit"]["steps"] if s.get("name") == "Install the audit")


@pytest.mark.parametrize("wheel", ["", "dist/adapter conformance #1.whl"])
def test_the_workflow_says_what_it_installs(library: Path, tmp_path: Path, wheel: str) -> None:
    """No index has the audit: without `--wheel` the step says what is to be filled in, and installs nothing."""
    done = started(library, "ToyLora", *ASK, *(["--wheel", wheel] if wheel else []))
    assert ("AUDIT, the wheel's address or its path" in done.stdout) == (not wheel)
    step, pip = install_step(library), tmp_path / "pip"
    pip.write_text(f'#!/bin/sh\nfor last; do :; done\nprintf %s "$last" > {tmp_path}/installed\n')
    pip.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", **step["env"]}
    ran = subprocess.run(
        ["bash", "-e", "-c", step["run"]], env=environment, capture_output=True, text=True, check=False
    )
    if wheel:
        assert (tmp_path / "installed").read_text() == wheel
    else:
        assert ran.returncode != 0
        assert "fill in AUDIT in this workflow" in ran.stderr
        assert not (tmp_path / "installed").exists()


def test_nothing_is_overwritten(library: Path) -> None:
    (library / "toy_lora.toml").write_text("# mine\n")
    done = started(library, "ToyLora", *ASK)
    assert done.returncode == 4
    assert "toy_lora.toml is there already" in done.stderr
    assert not (library / "toy_lora.py").exists()


def test_a_tensor_that_cannot_be_told_is_left_open(library: Path) -> None:
    twice = "        self.also = nn.Parameter(self.up.detach().clone())\n        self.train"
    source = toy.LIBRARY.replace("        self.train", twice)
    (library / "toylora.py").write_text(source)
    done = started(library, "ToyLora", *ASK)
    assert done.returncode == 1
    assert "not sound yet: lora: adapt raised AttributeError" in done.stdout
    assert "slots: which tensor is B, shape (out, r), of lora" in done.stdout
    assert "TO FILL IN: shape (out, r)" in (library / "toy_lora.py").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no-name", *ASK], "is no name of a class"),
        (["Toy", "--library", "toylora"], "--variants is missing, and there is no terminal to ask on"),
        (["Toy", *ASK, "--variants", "lorra"], "expected one or more of lora, pissa"),
        (["Toy", *ASK, "--layer", "f("], "is no Python expression"),
        (["Toy", *ASK, "--library", "toy-lora"], "expected a module's name"),
    ],
)
def test_refused(library: Path, monkeypatch, capsys, arguments: list[str], words: str) -> None:
    monkeypatch.setattr(sys, "stdin", open("/dev/null"))  # noqa: SIM115
    assert main(arguments) == 4
    assert words in capsys.readouterr().err
    assert not list(library.glob("toy*.toml"))


def test_a_library_that_is_not_here_gets_an_environment_of_its_own(
    library: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("adapter_conformance.new_subject._preflight", lambda given: [])
    layer = "elsewhere.Layer(base)"
    assert main(["Other", "--library", "elsewhere", "--variants", "lora", "--layer", layer]) == 0
    found = metadata_of(library / "other.py")
    assert found is not None
    assert found.dependencies == ("elsewhere", "torch>=2.4")
    assert "adapt, for lora: the layer could not be made" in capsys.readouterr().out


def test_every_aspect_that_is_asked_for_is_told() -> None:
    assert list(ASPECTS) == list(ASKED_OF_SUBJECTS)


class Terminal(io.StringIO):
    """A terminal on which these lines are typed."""

    def isatty(self) -> bool:
        return True


def test_what_is_not_given_is_asked_for(library: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("adapter_conformance.new_subject._preflight", lambda given: [])
    monkeypatch.setattr(sys, "stdin", Terminal("elsewhere\nlora, dora\nelsewhere.Layer(base)\n"))
    assert main(["Asked"]) == 0
    assert "Its methods, comma-separated" in capsys.readouterr().out
    text = (library / "asked.py").read_text()
    assert "import elsewhere\n" in text
    assert 'variants = frozenset({"lora", "dora"})' in text
    assert '"m": Slot(layer.m),  # TO FILL IN: shape (out,)' in text
    compile(text, "asked.py", "exec")
