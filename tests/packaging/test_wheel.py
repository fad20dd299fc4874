"""The wheel: one package and nothing else, the interface by its name, and the audit's folders on nobody's path."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from harness.engine import asked_again
from harness.subjects.resolve import resolve
from reports.version import VERSION
from tests.packaging import toy
from tests.packaging.toy import PACKAGE, ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pip would have unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "--target",
        "wheel",
        "--directory",
        str(folder / "dist"),
    ]
    subprocess.run(build, cwd=PACKAGE, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder / "site")
    return folder / "site"


def asked(site: Path, code: str, cwd: Path | None = None) -> object:
    """What a fresh process prints as JSON, with the wheel installed and no checkout in sight."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd or site.parent, env={"PYTHONPATH": str(site), "PATH": "/usr/bin"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_one_package_and_nothing_else(site: Path) -> None:
    top = {p.name for p in site.iterdir() if not p.name.endswith(".dist-info")}
    assert top == {"adapter_conformance"}
    assert (site / f"adapter_conformance-{VERSION}.dist-info").is_dir()


def test_what_it_brings_along(site: Path) -> None:
    house = site / "adapter_conformance" / "_house"
    assert {p.name for p in house.iterdir() if p.is_dir()} == {"harness", "oracles", "refs", "reports"}
    for file in ("reports/render/templates/review.md.j2", "refs/catalog.toml", "refs/vectors/corpus.json"):
        assert (house / file).is_file()
    assert not [p for p in house.rglob("*") if p.name == "__pycache__" or p.name == "out"]


def test_importing_it_brings_nothing_else(site: Path) -> None:
    code = """
import json, sys
before = set(sys.modules), list(sys.path)
import adapter_conformance
tops = {m.partition(".")[0] for m in set(sys.modules) - before[0]} - set(sys.stdlib_module_names)
print(json.dumps([sorted(tops), sys.path == before[1]]))
"""
    assert asked(site, code) == [["adapter_conformance"], True]


def test_the_classes_are_the_audits_own(site: Path) -> None:
    """Imported before the audit or after it, alone or not: one class."""
    code = """
import json, sys
from adapter_conformance import ArrayImplementation, Implementation
alone = "oracles" not in sys.modules
from adapter_conformance import house
house.enter()
from oracles.implementation import Implementation as own
from oracles.array_implementation import ArrayImplementation as arrays
print(json.dumps([alone, Implementation is own, ArrayImplementation is arrays, Implementation.__module__]))
"""
    assert asked(site, code) == [True, True, True, "adapter_conformance.implementation"]


def test_somebody_elses_name_is_said(site: Path, tmp_path: Path) -> None:
    (tmp_path / "reports.py").write_text("")
    code = """
import json, reports
from adapter_conformance import house
try:
    house.enter()
except house.Occupied as error:
    print(json.dumps(str(error)))
"""
    assert "a module named reports is loaded from" in str(asked(site, code, tmp_path))


def test_dependencies_are_those_of_the_audit() -> None:
    wheel = tomllib.loads((PACKAGE / "pyproject.toml").read_text())
    checkout = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert wheel["project"]["dependencies"] == checkout["dependency-groups"]["audit"]


def test_the_replay_is_what_can_be_run(site: Path) -> None:
    """`pytest harness/...` in the checkout; where it is installed, there is no such folder to stand in."""
    assert asked_again.command() == "pytest"
    installed = site / "adapter_conformance" / "_house" / "harness" / "engine" / "asked_again.py"
    assert asked_again.command(installed) == "adapter-conformance audit"


@pytest.mark.parametrize("command", ["diff", "accept", "merge", "refs", "render"])
def test_every_help_is_under_this_name_and_says_what_is_written(command: str, capsys) -> None:
    from adapter_conformance.command import main

    assert main([command, "--help"]) == 0
    said = capsys.readouterr().out
    assert f"usage: adapter-conformance {command}" in said
    assert "python -m" not in said
    assert "writes" in said


def test_a_subject_file_of_that_name_in_the_checkout(tmp_path: Path) -> None:
    """Without the wheel, `from adapter_conformance import ...` is the checkout's own interface."""
    toy.repository(tmp_path / "toy")
    code = (
        "import sys; from harness.subjects.resolve import resolve; "
        f"print(resolve({str(tmp_path / 'toy' / 'subject.py')!r} + ':Toy').implementation.name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin"},
    )  # fmt: skip
    assert done.stdout.strip() == "toylora"
    assert resolve(f"{tmp_path / 'toy' / 'subject.py'}:Toy").implementation.version == "0.3.0"
