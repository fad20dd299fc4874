"""Filling the cache from clones and mirrors; wrong files, paths and links are refused, nothing is kept."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from refs import catalog as catalogue
from refs import locate as location
from refs.__main__ import main
from refs.errors import HashMismatchError, NotAvailableError, UnsafePathError
from refs.sync import Outcome, sync
from tests.refs.conftest import CODE, Pinned, git, pin


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []


def from_clones(pinned: Pinned, cache: Path) -> Outcome:
    return next(iter(sync(pinned.catalog, cache, pinned.clone.parent)))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """An http server over an empty folder: its address and the folder."""
    root = tmp_path / "served"
    root.mkdir()
    handler = functools.partial(_Quiet, directory=str(root))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", root
    server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_from_a_clone_and_kept_afterwards(pinned: Pinned, cache: Path) -> None:
    assert from_clones(pinned, cache).state == "fetched"
    assert location.locate(pinned.catalog.reference("layer.py"), cache).read_text(encoding="utf-8") == CODE
    assert from_clones(pinned, cache).state == "kept"


def test_from_a_bare_clone(pinned: Pinned, cache: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--bare", str(pinned.clone), str(tmp_path / "bare" / "x" / "repo"))
    outcome = next(iter(sync(pinned.catalog, cache, tmp_path / "bare")))
    assert outcome.state == "fetched"


def test_the_right_content_at_another_commit_will_do(pinned: Pinned, cache: Path, tmp_path: Path) -> None:
    toml = pin(tmp_path, "0" * 40, CODE)
    assert from_clones(replace(pinned, toml=toml), cache).state == "fetched"


def test_another_content_is_refused_and_not_kept(pinned: Pinned, cache: Path, tmp_path: Path) -> None:
    toml = pin(tmp_path, pinned.commit, CODE + "# another\n")
    outcome = from_clones(replace(pinned, toml=toml), cache)
    assert outcome.state == "failed"
    assert "has another src/layer.py: refused" in outcome.sentence
    assert files_in(cache) == []


def test_a_clone_that_lacks_the_file(pinned: Pinned, cache: Path, tmp_path: Path) -> None:
    toml = pin(tmp_path, pinned.commit, CODE, "src/nothing.py")
    assert "no clone holds src/nothing.py" in from_clones(replace(pinned, toml=toml), cache).sentence


def test_from_a_mirror(pinned: Pinned, cache: Path, served: tuple[str, Path]) -> None:
    url, root = served
    target = root / "someone" / "layers" / pinned.commit / "src" / "layer.py"
    target.parent.mkdir(parents=True)
    target.write_text(CODE, encoding="utf-8")
    assert [o.state for o in sync(pinned.catalog, cache, base_url=url, retries=0)] == ["fetched"]
    assert location.locate(pinned.catalog.reference("layer.py"), cache).is_file()


@pytest.mark.parametrize(("code", "sentence"), [(CODE + "\n", "another sha256: refused"), (None, "404")])
def test_a_mirror_with_a_wrong_file_or_none(
    pinned: Pinned, cache: Path, served: tuple[str, Path], code: str | None, sentence: str
) -> None:
    url, root = served
    if code:
        target = root / "someone" / "layers" / pinned.commit / "src" / "layer.py"
        target.parent.mkdir(parents=True)
        target.write_text(code, encoding="utf-8")
    (outcome,) = sync(pinned.catalog, cache, base_url=url, retries=0)
    assert outcome.state == "failed"
    assert sentence in outcome.sentence
    assert files_in(cache) == []


def test_offline_is_one_line(pinned: Pinned, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NotAvailableError, match="cannot be reached: the recordings stand in"):
        list(sync(pinned.catalog, cache, base_url="http://127.0.0.1:9/", retries=0))
    options = ["--catalog", str(pinned.toml), "--cache", str(cache), "--base-url", "http://127.0.0.1:9"]
    assert main(["sync", "--retries", "0", *options]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_changed_cache_file_is_refused_and_replaced(pinned: Pinned, cache: Path) -> None:
    from_clones(pinned, cache)
    reference = pinned.catalog.reference("layer.py")
    path = location.cache_path(reference, cache)
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    with pytest.raises(HashMismatchError, match=r"layer\.py was changed"):
        location.locate(reference, cache)
    assert from_clones(pinned, cache).state == "fetched"
    assert path.read_text(encoding="utf-8") == CODE


@pytest.mark.parametrize("depth", range(5))
def test_links_inside_the_cache_are_refused(pinned: Pinned, cache: Path, tmp_path: Path, depth: int) -> None:
    reference = pinned.catalog.reference("layer.py")
    path = location.cache_path(reference, cache)
    parts = path.relative_to(cache).parts
    link = cache.joinpath(*parts[: depth + 1])
    link.parent.mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link.symlink_to(elsewhere)
    with pytest.raises(UnsafePathError, match="is a symbolic link"):
        location.locate(reference, cache)
    outcome = from_clones(pinned, cache)
    assert outcome.state == "failed"
    assert files_in(elsewhere) == []


@pytest.mark.parametrize("path", ["../../out.py", "/out.py", "a/../../../../../out.py", "C:\\out.py"])
def test_a_path_out_of_the_cache_is_refused(pinned: Pinned, cache: Path, path: str) -> None:
    reference = replace(pinned.catalog.reference("layer.py"), path=path)
    with pytest.raises(UnsafePathError, match="would leave the cache"):
        location.cache_path(reference, cache)


def test_the_cache_can_be_named_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUDIT_REFS_CACHE", str(tmp_path / "env"))
    assert location.cache_folder() == tmp_path / "env"
    assert location.cache_folder(tmp_path / "given") == tmp_path / "given"
    monkeypatch.delenv("AUDIT_REFS_CACHE")
    assert location.cache_folder().name == "peft-conformance-audit"


def test_the_commands(pinned: Pinned, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--catalog", str(pinned.toml), "--cache", str(cache)]
    assert main(["quote", "layer.py:Layer.forward", *options]) == 1
    assert "is not synced" in capsys.readouterr().err
    assert main(["sync", "--from", str(pinned.clone.parent), *options]) == 0
    assert main(["verify", *options]) == 0
    assert main(["list", *options]) == 0
    assert main(["quote", "layer.py:Layer.forward @ scaled", *options]) == 0
    out = capsys.readouterr().out
    assert "layer.py:L9 " in out
    assert "scaled = x * self.factor" in out
    location.cache_path(pinned.catalog.reference("layer.py"), cache).write_text("x", encoding="utf-8")
    assert main(["verify", *options]) == 1


@pytest.mark.parametrize(
    "command",
    [
        ["quote", "nosuch.py:f"],
        ["quote", "layer.py"],
        ["sync", "--from", "no/such/folder"],
        ["sync", "--base-url", "file:///etc"],
        ["list", "--catalog", "no/such/catalog.toml"],
    ],
)
def test_bad_usage_is_one_line_and_exit_2(
    pinned: Pinned, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = command if "--catalog" in command else [*command, "--catalog", str(pinned.toml)]
    assert main(given) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("command", [[], ["nosuch"], ["sync", "--from", "a", "--base-url", "b"], ["quote"]])
def test_unknown_arguments_exit_2(command: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(command)
    assert caught.value.code == 2


def test_the_default_catalogue_needs_no_network_to_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert all(alias in out for alias in catalogue.load().files)
