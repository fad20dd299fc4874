"""The same subject, references and seed: the same bytes, however and wherever the audit runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trust.runs import Files, audit, reports

NARROW = ("--variant=ia3", "--oracle=paper")
OTHERWISE = {
    "PYTHONHASHSEED": "12345",
    "OMP_NUM_THREADS": "3",
    "MKL_NUM_THREADS": "3",
    "LC_ALL": "tr_TR.UTF-8",
    "LANG": "C",
    "TZ": "Pacific/Chatham",
    "PYTHONOPTIMIZE": "",
}


def run(folder: Path, *options: str, **more: object) -> Files:
    files = Files(folder)
    folder.mkdir(exist_ok=True)
    done = audit(*NARROW, *files.options, *options, **more)  # type: ignore[arg-type]
    assert done.returncode == 1, done.stdout + done.stderr
    return files


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Files:
    return run(tmp_path_factory.mktemp("first"), env={"PYTHONHASHSEED": "0"})


def test_there_is_something_to_repeat(first):
    assert "ia3.bias_not_gated" in first.audit.read_text()
    assert "[OK-undoc]" in first.review.read_text(encoding="utf-8")


def test_twice_in_a_row(first, tmp_path):
    assert run(tmp_path, env={"PYTHONHASHSEED": "0"}).bytes() == first.bytes()


def test_with_two_workers(first, tmp_path):
    assert run(tmp_path, "-n2").bytes() == first.bytes()


def test_in_another_folder_hash_seed_thread_count_locale_and_time_zone(first, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert run(tmp_path / "out", env=OTHERWISE, cwd=elsewhere).bytes() == first.bytes()


def test_as_shards_merged(first, tmp_path):
    shards = []
    for i in (1, 2):
        files = Files(tmp_path / str(i))
        files.folder.mkdir()
        done = audit(*NARROW, *files.options, f"--shard={i}/2", env={"PYTHONHASHSEED": str(i)})
        assert done.returncode == 1, done.stdout + done.stderr
        assert not files.review.exists()
        shards.append(files.audit)
    merged = Files(tmp_path)
    done = reports("merge", *reversed(shards), "-o", merged.audit, "--report", merged.review)
    assert done.returncode == 1, done.stderr
    assert merged.bytes() == first.bytes()
