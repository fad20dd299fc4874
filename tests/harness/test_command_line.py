"""The command line: what cannot be used is one clear line and exit 4, and nothing half-written stays behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.engine.run_record import ref_of
from harness.subjects.resolve import BadSubject, resolve

ROOT = Path(__file__).parents[2]
# Several command lines in one process: each ends before a test runs, and importing torch once is enough.
DRIVER = """
import contextlib, io, json, sys
import pytest
ends = []
for line in json.loads(sys.stdin.read()):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        ends.append([int(pytest.main(line)), said.getvalue()])
print("ENDS" + json.dumps(ends))
"""
# options -> words of the one line on stderr
REFUSED = {
    ("--subject", "nonsense"): "nonsense",
    ("--subject", "nowhere.py:Thing"): "there is no file nowhere.py",
    ("--subject", "tests/trust/wrong.py:Nothing"): "has no attribute 'Nothing'",
    ("--subject", "json:JSONDecoder"): "expected an Implementation",
    ("--variant", "nosuch"): "expected one or more of lora, pissa, dora, ia3, hra, delora",
    ("--variant", ","): "expected one or more of",
    ("--oracle", "nosuch"): "expected one or more of",
    ("--variant", "nosuch", "-n", "2"): "expected one or more of lora, pissa",
    ("--audit-profile", "thorough"): "expected one of quick, default, deep",
    ("--prior", "nowhere.toml"): "there is no such file",
    ("--deviations", "nowhere.toml"): "there is no such file",
    ("--report", "harness"): "is a directory, expected a file to write",
    ("--report=/proc/nowhere/review.md",): "cannot be written",
    ("--audit-json=/proc/nowhere/audit.json", "--report=-"): "cannot be written",
}


@pytest.fixture(scope="module")
def ends() -> list[tuple[int, str]]:
    """Exit status and standard error of every refused command line."""
    lines = [["harness", "-q", "-p", "no:cacheprovider", *options] for options in REFUSED]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], input=json.dumps(lines), cwd=ROOT, capture_output=True, text=True, check=True
    )  # fmt: skip
    return json.loads(done.stdout.partition("ENDS")[2])


@pytest.mark.parametrize("options", REFUSED, ids=" ".join)
def test_refused(ends: list[tuple[int, str]], options: tuple[str, ...]) -> None:
    """Exit 4, and one line that names what was given and what was expected."""
    status, said = ends[list(REFUSED).index(options)]
    lines = [line for line in said.splitlines() if line.strip()]
    assert status == 4
    assert len(lines) == 1, said
    assert REFUSED[options] in lines[0]
    assert options[0].partition("=")[0] in lines[0]


WRAPPER = """
from my_library import NAME
from oracles.equation import Equation

class Mine(Equation):
    name = NAME
"""


def test_a_library_beside_its_wrapper(tmp_path: Path) -> None:
    """A wrapper can import the library that lies beside it."""
    (tmp_path / "my_library.py").write_text("NAME = 'beside'\n")
    (tmp_path / "wrapper.py").write_text(WRAPPER)
    assert resolve(f"{tmp_path / 'wrapper.py'}:Mine").implementation.name == "beside"


def test_a_wrapper_that_fails_is_named(tmp_path: Path) -> None:
    """What running the file raises is in the sentence."""
    (tmp_path / "broken.py").write_text("import nothing_of_the_kind\n")
    with pytest.raises(BadSubject, match="No module named 'nothing_of_the_kind'"):
        resolve(f"{tmp_path / 'broken.py'}:Mine")


def test_a_reference_can_be_given_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the checkout, the subject is found under the name that the review gives it."""
    outside = tmp_path / "mine.py"
    root = tmp_path / "checkout"
    root.mkdir()
    monkeypatch.chdir(tmp_path)
    assert ref_of("lora_lite", root) == "lora_lite"
    assert ref_of("package.module:Attr", root) == "package.module:Attr"
    assert ref_of(f"{root}/tests/mine.py:A", root) == "tests/mine.py:A"
    assert ref_of("checkout/tests/mine.py:A", root) == "tests/mine.py:A"
    assert ref_of(f"{outside}:A", root) == f"{outside}:A"
    assert ref_of("mine.py:A", root) == "../mine.py:A"


@pytest.mark.parametrize("options", [[], ["-p", "no:xdist"]], ids=["with xdist", "without xdist"])
def test_quick_asks_four_cases_a_large_and_a_square_one_at_most(tmp_path: Path, options: list[str]) -> None:
    """Also where a check has a number of its own; and xdist need not be there."""
    asked = ["harness/test_forward.py", "harness/test_merge.py", "--audit-profile", "quick", *options]
    narrowed = ["--variant", "ia3", "--oracle", "paper", "--audit-json", str(tmp_path / "a.json")]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--report={tmp_path / 'r.md'}",
    ]
    subprocess.run([*command, *asked, *narrowed], cwd=ROOT, capture_output=True, check=False)
    claims = json.loads((tmp_path / "a.json").read_text())["claims"]
    assert {c["outcome"] for c in claims if c["check"] == "merge.modes"} == {"pass"}
    assert max(c["examples"] for c in claims) == 6


def test_a_quiet_run_says_nothing_beside_its_review(tmp_path: Path) -> None:
    """`--report=- -q`, workers or not: the review on stdout, nothing on stderr; `--aspect` narrows, and is said."""
    options = [
        "--report=-",
        "--aspect",
        "scale",
        "--variant",
        "ia3,hra",
        "--oracle",
        "paper",
        "--subject",
        "peft",
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "harness/"]
    asked = [*command, *options, "--audit-profile", "quick", "--audit-json", str(tmp_path / "a.json")]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.startswith("# Review of peft")
    assert "only the aspects scale" in done.stdout
    assert {c["aspect"] for c in json.loads((tmp_path / "a.json").read_text())["claims"]} == {"scale"}
