"""Inline metadata: read as PEP 723 says, made into an environment once, refused in one sentence."""

from __future__ import annotations

import ast
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from harness import bisect
from harness.subjects import releases
from harness.subjects.peft_release import Peft as Release
from harness.subjects.remote import environment, worker
from harness.subjects.remote.environment import BadEnvironment, Metadata, metadata_of
from harness.subjects.remote.process import ARRAYS, IMPLEMENTATION, Command, NoWorker, start
from harness.subjects.remote.proxy import remote_subject
from harness.subjects.resolve import SHIPPED, BadSubject, Place, resolve
from oracles.peft import Peft as Installed
from tests.remote.served import SUBJECTS
from tests.subjects.judged import QUICK, once

BLOCK = (
    '# /// script\n# requires-python = ">=3.9"\n# dependencies = [\n#   "numpy",\n#   "six>1",\n# ]\n# ///\n'
)


def file_with(folder: Path, text: str) -> Path:
    """A subject's file."""
    path = folder / "subject.py"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_block_is_read(tmp_path: Path) -> None:
    """Wherever in the file it stands; a file without one has none."""
    assert metadata_of(file_with(tmp_path, "'''Text.'''\n\n" + BLOCK)) == Metadata(
        ("numpy", "six>1"), ">=3.9"
    )
    assert metadata_of(file_with(tmp_path, "import torch\n")) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BLOCK + "\n" + BLOCK, "2 script blocks, expected one"),
        ("# /// script\n# dependencies = [numpy]\n# ///\n", "cannot be read: Invalid value"),
        ('# /// script\n# dependencies = "numpy"\n# ///\n', "dependencies are 'numpy', expected a list"),
        ("# /// script\n# requires-python = 3\n# ///\n", "requires-python is 3, expected a string"),
        (
            '# /// script\n# [tool.uv]\n# exclude-dependencies = "torch"\n# ///\n',
            "exclude-dependencies are 'torch', expected a list",
        ),
    ],
)
def test_a_bad_block_is_refused(text: str, words: str, tmp_path: Path) -> None:
    """In one sentence, through `--subject` too."""
    path = file_with(tmp_path, text)
    with pytest.raises(BadEnvironment, match=words):
        metadata_of(path)
    with pytest.raises(BadSubject, match=words):
        resolve(f"{path}:Subject", Place(offline=True, say=lambda line: None))


def fake_uv(folder: Path, body: str) -> Path:
    """A program in uv's place."""
    path = folder / "uv"
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setattr(environment.platformdirs, "user_cache_path", lambda name: tmp_path / "cache")
    return tmp_path / "cache" / "environments"


MAKES = """echo "$@" >> "$0.log"
if [ "$1" = venv ]; then for last; do :; done; mkdir -p "$last/bin"; touch "$last/bin/python"; fi"""


def test_an_environment_is_made_once(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """uv is asked with the block's requirements, and not again; `--offline` is passed on."""
    uv = fake_uv(tmp_path, MAKES)
    monkeypatch.setattr(environment, "_uv", lambda: str(uv))
    said: list[str] = []
    metadata = Metadata(("numpy", "six>1"), ">=3.9")
    first = environment.interpreter(metadata, said.append, offline=True)
    assert environment.interpreter(metadata, said.append) == first
    assert len(said) == 1
    assert "numpy, six>1" in said[0]
    asked = (tmp_path / "uv.log").read_text().splitlines()
    assert len(asked) == 2
    assert all("--offline" in line for line in asked)
    assert asked[1].endswith("numpy six>1")


def test_wheels_that_pip_is_told_of_are_looked_at(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uv reads none of pip's settings."""
    uv = fake_uv(tmp_path, MAKES)
    monkeypatch.setattr(environment, "_uv", lambda: str(uv))
    monkeypatch.setenv("PIP_FIND_LINKS", "/one /other")
    environment.interpreter(Metadata(("numpy",)), lambda line: None)
    assert "--find-links /one --find-links /other" in (tmp_path / "uv.log").read_text()


UVS = """# [tool.uv]
# override-dependencies = ["torch==2.13.0"]
# exclude-dependencies = ["torchaudio", "datasets"]
"""


def test_what_uv_is_to_override_and_leave_out_is_passed_on(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that asks for gigabytes beside its adapters: uv's own words in the block, in files for uv."""
    monkeypatch.setattr(environment, "_uv", lambda: str(fake_uv(tmp_path, MAKES)))
    plain = metadata_of(file_with(tmp_path, BLOCK))
    more = metadata_of(file_with(tmp_path, BLOCK.removesuffix("# ///\n") + UVS + "# ///\n"))
    assert plain is not None
    assert more == Metadata(("numpy", "six>1"), ">=3.9", ("torch==2.13.0",), ("torchaudio", "datasets"))
    assert more.key != plain.key
    folder = environment.interpreter(more, lambda line: None).parent.parent
    asked = (tmp_path / "uv.log").read_text()
    assert f"--overrides {folder}/overrides.txt --excludes {folder}/excludes.txt" in asked
    assert (folder / "overrides.txt").read_text() == "torch==2.13.0\n"
    assert (folder / "excludes.txt").read_text() == "torchaudio\ndatasets\n"
    environment.interpreter(plain, lambda line: None)
    assert (tmp_path / "uv.log").read_text().count("--overrides") == 1


def test_nothing_half_made_is_left(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where uv fails its reason is told, and the folder is gone."""
    monkeypatch.setattr(
        environment, "_uv", lambda: str(fake_uv(tmp_path, 'echo "error: no such thing" >&2; exit 1'))
    )
    with pytest.raises(BadEnvironment, match=r"uv could not make the environment: error: no such thing"):
        environment.interpreter(Metadata(("nothing",)), lambda line: None)
    assert [p.name for p in cache.iterdir() if p.is_dir()] == []


@pytest.mark.parametrize(
    ("python", "file", "attribute", "words"),
    [
        ("/nowhere/python", "crashes.py", "Behaves", r"there is no Python at /nowhere/python"),
        (__file__, "crashes.py", "Behaves", r"cannot be run: Permission denied"),
        (sys.executable, "crashes.py", "Nobody", r"crashes.py: it has no attribute 'Nobody'"),
        (sys.executable, "crashes.py", "connection", r"raised IndexError|raised ValueError|expected an Implementation"),
        (sys.executable, "missing_library.py", "Subject", r"raised ModuleNotFoundError: No module named 'no_such"),
        (sys.executable, "ends.py", "Subject", r"could not be loaded in .*ended with exit code 3"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_said(
    python: str, file: str, attribute: str, words: str, tmp_path: Path
) -> None:
    """In one sentence, and no process stays."""
    (tmp_path / "missing_library.py").write_text("import no_such_library\n")
    (tmp_path / "ends.py").write_text("import os\nos._exit(3)\n")
    path = SUBJECTS / file if (SUBJECTS / file).is_file() else tmp_path / file
    with pytest.raises(NoWorker, match=words):
        start(Command(Path(python), path, attribute))


def test_a_release_has_its_requirements() -> None:
    """Older releases of PEFT with what they run with."""
    assert releases.class_of("peft@0.11.0") == "Peft"
    assert releases.class_of("peft@0.15.2+lora_bias") == "WithLoraBias"
    assert releases.class_of("peft") is None
    with pytest.raises(BadSubject, match="there is no option 'nothing'; expected lora_bias"):
        resolve("peft@0.15.2+nothing", Place(offline=True, say=lambda line: None))
    assert "transformers==4.57.1" in releases.metadata_of("peft@0.4.0").dependencies
    newest = releases.metadata_of("peft@0.21.2").dependencies
    assert newest[:2] == ("peft==0.21.2", f"torch=={torch.__version__.partition('+')[0]}")


def test_a_fork_of_peft_runs_in_its_own_interpreter() -> None:
    """`--subject peft` is, in another interpreter, whatever PEFT is installed there."""
    found = resolve("peft", Place(Path(sys.executable))).implementation
    assert (found.name, found.version) == ("peft", metadata.version("peft"))
    assert "embedding" in found.layers


@pytest.mark.parametrize(
    ("variant", "asked"),
    [
        ("lora", ("layers.", "merge.")),
        ("ia3", ("lifecycle.", "layers.", "checkpoints.", "merge.", "shapes.")),
    ],
)
def test_a_release_is_asked_what_the_installed_one_is(variant: str, asked: tuple[str, ...]) -> None:
    """The file that every release is asked through offers what the shipped subject does, and answers the same."""
    installed, release = (
        {c.id: c.outcome for c in once(who, [variant], lambda check: check.id.startswith(asked), QUICK)}
        for who in (Installed(), Release())
    )
    assert installed == release


RELEASES = [f"0.{n}.0" for n in range(4, 12)]


@pytest.mark.parametrize("first_bad", RELEASES[1:])
def test_a_search_finds_the_release(first_bad: str) -> None:
    """Whichever it is, asking about a logarithm of them; the chain may run backwards."""
    asked: list[str] = []

    def judge(release: str) -> str:
        asked.append(release)
        return "fail" if RELEASES.index(release) >= RELEASES.index(first_bad) else "pass"

    found = bisect.search(bisect.between(RELEASES, "0.4.0", "0.11.0"), judge, lambda line: None)
    assert found == (RELEASES[RELEASES.index(first_bad) - 1], first_bad)
    assert len(asked) <= 5
    chain = bisect.between(RELEASES, "0.11.0", "0.4.0")
    backwards = bisect.search(chain, lambda r: "fail" if judge(r) == "pass" else "pass", lambda line: None)
    assert backwards == found[::-1]


def test_a_release_without_the_variant_is_passed_over() -> None:
    """What is not offered is neither good nor bad."""
    outcomes = {
        "0.4.0": "pass",
        "0.5.0": "pass",
        "0.6.0": "not_applicable",
        "0.7.0": "not_applicable",
        "0.8.0": "fail",
    }
    assert bisect.search(list(outcomes), outcomes.__getitem__, lambda line: None) == ("0.5.0", "0.8.0")


def test_a_search_that_cannot_be_made_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Ends that are not what they were given as, releases and claims that do not exist."""
    with pytest.raises(bisect.CannotSearch, match=r"0.8.0 was given as bad, and it is not"):
        bisect.search(["0.4.0", "0.8.0"], lambda release: "pass", lambda line: None)
    with pytest.raises(bisect.CannotSearch, match=r"0.99 is no release"):
        bisect.between(RELEASES, "0.4.0", "0.99")
    assert bisect.main(["--good", "0.4.0", "--bad", "0.5.0", "nonsense"]) == 4
    assert "is no claim" in capsys.readouterr().err


@pytest.mark.parametrize("file", [worker.__file__, IMPLEMENTATION, ARRAYS], ids=lambda f: Path(f).name)
def test_what_runs_there_is_python_3_9(file: str | Path) -> None:
    """The worker and the two interface files, which run beside libraries that are older than the audit."""
    ast.parse(Path(file).read_text(encoding="utf-8"), feature_version=(3, 9))


def test_a_dtype_that_torch_lacks_is_not_laid_at_the_librarys_door() -> None:
    """Beside an older torch float16 is not asked, and no mode is missing; where it is the library's, it is."""
    served = remote_subject(Command(Path(sys.executable), SUBJECTS / "old_torch.py", "Old"))
    assert "float16" not in served.dtypes
    (claim,) = once(served, ["lora"], lambda c: c.id == "dtype.taken", QUICK)
    assert claim.outcome == "pass", claim.reason
    served = remote_subject(Command(Path(sys.executable), SUBJECTS / "old_torch.py", "Refuses"))
    (claim,) = once(served, ["lora"], lambda c: c.id == "dtype.taken", QUICK)
    assert claim.outcome != "pass"
    assert "float16" in (claim.reason or "")


def test_a_shipped_subject_does_not_stand_in_for_the_library_of_its_name(tmp_path: Path) -> None:
    """A library that tries `import hqq` must not be given hqq.py; beside anybody else's file may be its library."""
    assert worker.beside(str(SHIPPED / "keras.py")) == []
    assert worker.beside(str(tmp_path / "mine.py")) == [str(tmp_path.resolve())]
