"""Files that are not what they should be: refused in a sentence of a named error, and nothing is lost."""

from __future__ import annotations

import contextlib
import json
import shutil
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from harness.engine import declarations
from harness.engine.session import load_checks
from oracles.authors import recordings
from refs import catalog, locate
from refs.errors import CatalogError, RefsError, UnsafePathError
from reports.errors import OtherSchema, ReportsError
from reports.store import audit_json, merge
from reports.store.prior_file import load_prior

load_checks()
COMMITTED = recordings.ROOT / "ia3-author"
NAMED = (ReportsError, RefsError, declarations.BadDeviations)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
BOMBS = {
    "deep array": "a = " + "[" * 50_000 + "]" * 50_000,
    "deep table": "a = " + "{a=" * 5_000 + "1" + "}" * 5_000,
    "dotted keys": ".".join(["a"] * 20_000) + " = 1",
    "huge integer": "a = " + "9" * 100_000,
    "null bytes": "a = '\0'",
    "no UTF-8": b"a = '\xff'",
    "table headers": "[[deviation]]\n" * 20_000,
    "too large": "# " + "x" * (2 << 20),
}


def put(path, data) -> None:
    path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))


READERS = {
    "deviations": ("d.toml", lambda path: declarations.load(path, {})),
    "prior": ("p.toml", load_prior),
    "prior audit": ("p.json", load_prior),
    "catalogue": ("catalog.toml", catalog.load),
    "audit": ("audit.json", audit_json.read),
    "partial audit": ("audit.json", audit_json.read_partial),
    "shard": ("audit.json", audit_json.read_shard),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS.keys())
def test_bombs_are_refused_in_a_sentence(reader, bomb, tmp_path):
    name, read = reader
    put(tmp_path / name, bomb)
    with pytest.raises(NAMED) as caught:
        read(tmp_path / name)
    assert 0 < len(str(caught.value)) < 2000


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS.keys())
@given(data=st.binary(max_size=200) | st.text(max_size=200))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_any_bytes_give_a_named_error_or_an_answer(reader, data, tmp_path_factory):
    name, read = reader
    path = tmp_path_factory.mktemp("fuzz") / name
    put(path, data)
    with contextlib.suppress(NAMED):
        read(path)


def toml(value: object) -> str:
    """A value as TOML writes it inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return '"none"' if value is None else json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf")


DEVIATION = {
    "check": "forward.random_parameters", "variant": "lora", "oracle": "*", "reason": "r", "docstring_words": ["w"],
}  # fmt: skip
SHAPES = {
    "deviations": {"deviation": [DEVIATION]},
    "prior": {
        "variant": [{"variant": "lora", "verdict": "Faithful", "finding": [{"id": "a", "quote": "b"}]}]
    },
    "catalogue": {
        "source": {"peft": {"kind": "package", "name": "peft", "pin": "1", "licence": "x", "url": "u"}},
        "files": {"peft": {"a.py": {"path": "peft/a.py", "sha256": "0" * 64}}},
        "cites": {"lora": {"forward": ["a.py:F"]}},
    },
}


def places(value: object, at: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(p for key, inner in items for p in places(inner, (*at, key)))]


def with_value(value, at, new):
    if not at:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = with_value(copy[at[0]], at[1:], new)
    return copy


@pytest.mark.parametrize("which", SHAPES)
@given(data=st.data())
@settings(max_examples=80, deadline=None, derandomize=True)
def test_a_wrong_value_anywhere_is_named(which, data, tmp_path_factory):
    name, read = READERS[which]
    at = data.draw(st.sampled_from(places(SHAPES[which])[1:]))
    document = with_value(SHAPES[which], at, data.draw(VALUES))
    path = tmp_path_factory.mktemp("fuzz") / name
    put(path, "\n".join(f"{k} = {toml(v)}" for k, v in document.items()))
    with contextlib.suppress(NAMED):
        read(path)


@pytest.fixture
def recording(tmp_path):
    shutil.copytree(COMMITTED, tmp_path / "ia3-author")
    return tmp_path / "ia3-author"


def resealed(where, **changes) -> None:
    """A manifest whose seal fits: whoever can write it can seal it."""
    manifest = json.loads((where / "manifest.json").read_text()) | changes
    manifest["seal"] = recordings.seal(manifest)
    (where / "manifest.json").write_text(json.dumps(manifest))


def header(length: int, text: bytes = b"{}") -> bytes:
    return struct.pack("<Q", length) + text


TENSORS = {
    "empty": b"",
    "cut": (COMMITTED / "cases.safetensors").read_bytes()[:100],
    "header beyond the file": header(2**62),
    "header of 4 GiB": header(2**32),
    "header that is no JSON": header(4, b"oops"),
    "offsets beyond the file": header(
        70, b'{"a":{"dtype":"F32","shape":[999999],"data_offsets":[0,3999996]}}     '
    ),
    "negative shape": header(
        64, b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}'.ljust(64) + b"0000"
    ),
    "nothing in it": save({}),
}


@pytest.mark.parametrize("data", TENSORS.values(), ids=TENSORS.keys())
def test_broken_safetensors_in_a_recording(data, recording):
    import hashlib

    (recording / "cases.safetensors").write_bytes(data)
    with pytest.raises(RefsError):
        recordings.read(recording, {})
    resealed(recording, tensors_sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(RefsError):
        recordings.read(recording, {})


@given(data=st.data())
@settings(max_examples=80, deadline=None, derandomize=True)
def test_a_sealed_manifest_with_a_wrong_value_is_named(data, tmp_path_factory):
    where = tmp_path_factory.mktemp("fuzz") / "ia3-author"
    shutil.copytree(COMMITTED, where)
    manifest = json.loads((where / "manifest.json").read_text())
    manifest["cases"] = manifest["cases"][:1]
    at = data.draw(st.sampled_from(places(manifest)[1:]))
    resealed(where, **with_value(manifest, at, data.draw(VALUES.filter(lambda v: v == v))))
    with contextlib.suppress(RefsError):
        recordings.read(where, {"commit": "x"} if data.draw(st.booleans()) else {})


@pytest.mark.parametrize("path", ["../x.py", "/etc/passwd", "a/../../x.py", "a\\..\\x.py", "C:x.py", ""])
def test_paths_that_leave_the_cache_are_refused(path, tmp_path):
    document = with_value(SHAPES["catalogue"], ("files", "peft", "a.py", "path"), path)
    put(tmp_path / "catalog.toml", "\n".join(f"{k} = {toml(v)}" for k, v in document.items()))
    with pytest.raises(CatalogError, match="not a path inside"):
        catalog.load(tmp_path / "catalog.toml")


def test_a_symbolic_link_in_the_cache_is_refused_and_left_alone(tmp_path):
    reference = next(r for r in catalog.load().files.values() if r.source.kind == "repository")
    target = locate.cache_path(reference, tmp_path / "cache")
    target.parent.mkdir(parents=True)
    (tmp_path / "mine.py").write_text("keep me")
    target.symlink_to(tmp_path / "mine.py")
    with pytest.raises(UnsafePathError, match="symbolic link"):
        locate.locate(reference, tmp_path / "cache")
    assert (tmp_path / "mine.py").read_text() == "keep me"


def test_another_schema_version_is_refused_everywhere(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"schema_version": 3, "complete": True}))
    for read in (audit_json.read, audit_json.read_partial, audit_json.read_shard, load_prior):
        with pytest.raises(OtherSchema, match="only 1"):
            read(tmp_path / "a.json")
    assert (tmp_path / "a.json").exists()


def test_merging_nothing_is_refused():
    with pytest.raises(ReportsError):
        merge.merged({})
