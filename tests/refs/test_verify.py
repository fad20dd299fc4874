"""Drift of an installed package, symbol by symbol, and what it concerns."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from refs import catalog as catalogue
from refs.__main__ import main
from refs.quotes import cite_target
from refs.verify import check, write_digests
from tests.refs.conftest import CODE, write_catalog


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package `pinned_package` with a catalogue and digests taken from it; its layer.py."""
    file = tmp_path / "site" / "pinned_package" / "layer.py"
    file.parent.mkdir(parents=True)
    file.write_text(CODE, encoding="utf-8")
    (file.parent / "__init__.py").write_text("", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    source = 'kind = "package"\nname = "pinned_package"\npin = "1.0"\nlicence = "MIT"\nurl = "u"'
    sha256 = hashlib.sha256(CODE.encode()).hexdigest()
    files = f'"layer.py" = {{ path = "pinned_package/layer.py", sha256 = "{sha256}", oracle = "peft" }}'
    cites = '[cites.lora]\nforward = ["layer.py:Layer.forward"]\n[cites.dora]\nscale = ["layer.py:helper"]'
    toml = write_catalog(tmp_path, source, files, cites)
    assert write_digests(catalogue.load(toml), tmp_path / "digests.json") == 2
    toml.touch()  # the catalogue is read once per version of the file
    catalogue._load.cache_clear()
    return file


def status(package: Path) -> tuple[str, dict[str, tuple[str, ...]]]:
    found = check(catalogue.load(package.parents[2] / "catalog.toml"), "layer.py")
    return found.state, {d.symbol: (d.what, *d.aspects, *d.oracles) for d in found.drifts}


def test_the_pinned_file_is_ok(package: Path) -> None:
    assert status(package) == ("ok", {})


def test_a_changed_symbol_concerns_its_own_aspects_only(package: Path) -> None:
    package.write_text(CODE.replace("scaled + 1", "scaled + 2"), encoding="utf-8")
    assert status(package) == ("drift", {"Layer.forward": ("changed", "lora.forward", "lora/peft")})
    catalog = catalogue.load(package.parents[2] / "catalog.toml")
    note = cite_target(catalog, "layer.py", "Layer.forward").note
    assert note == "`Layer.forward` of layer.py differs from pinned_package 1.0"
    assert cite_target(catalog, "layer.py", "helper").note is None


def test_a_symbol_that_went_away(package: Path) -> None:
    package.write_text(CODE.replace("def helper", "def helped"), encoding="utf-8")
    assert status(package) == ("drift", {"helper": ("missing", "dora.scale", "dora/peft")})


def test_comments_are_drift_of_no_symbol(package: Path) -> None:
    package.write_text("# new\n" + CODE, encoding="utf-8")
    assert status(package) == ("drift", {})


def test_the_command_says_what_is_concerned(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml = str(package.parents[2] / "catalog.toml")
    assert main(["verify", "--catalog", toml]) == 0
    package.write_text(CODE.replace("scaled + 1", "scaled + 2"), encoding="utf-8")
    assert main(["verify", "--catalog", toml]) == 1
    out = capsys.readouterr().out
    assert "`Layer.forward` changed: concerns quotes of lora.forward and oracles lora/peft" in out
    assert main(["pin", "--catalog", toml]) == 1  # digests are never taken from a changed file
