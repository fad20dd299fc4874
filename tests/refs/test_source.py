"""The finder and the quotes on files of every kind, broken ones included."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from refs.errors import SourceError
from refs.quotes import cite_file, symbol_digest
from refs.source import find, quote

CODE = '''\
"""Module."""
import math

TABLE = {
    "llama": ["q", "v"],
    "t5": ["k"],
}

WIDE = {
    "a": [],
    "b": [],
    "c": [],
    "d": [],
    "e": [],
    "f": [],
    "g": [],
    "h": [],
    "qwen": ["q"],
    "i": [],
}


class Layer:
    """A layer.

    scaling = not this one
    """

    rank: int = 8

    @property
    @math.cache
    def size(self):
        return 1

    def update(self, name):
        """Docstring."""
        if name:
            self.scaling[name] = 1
        else:
            self.scaling[name] = 2
        self.scaling[name] = 3
        a, b = split(name)
        use(self.other)
        return a + b

    if True:

        def hidden(self):
            def inner():
                return 5

            return inner


def twice():
    return 1


def twice():
    return 2


def long(x):
    """One line."""
    warn("a")
    check(x)
    if x is None:
        raise ValueError(1 * 2 * 3 * 4 * 5 * 6 * 7)
    pass
    pass
    pass
    pass
    pass
    pass
    y = x @ x.T
    z = y * y + y / 2
    return z - y
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "layer.py"
    path.write_text(CODE, encoding="utf-8")
    return path


def text(path: Path, symbol: str, anchor: str | None = None) -> str:
    span = find(path, symbol, anchor)
    return "\n".join(path.read_text(encoding="utf-8").split("\n")[span.start - 1 : span.end])


@pytest.mark.parametrize(
    ("symbol", "anchor", "first", "last"),
    [
        ("Layer", None, "class Layer:", "return inner"),
        ("Layer.size", None, "@property", "return 1"),
        ("Layer.hidden.inner", None, "def inner():", "return 5"),
        ("Layer.rank", None, "rank: int = 8", "rank: int = 8"),
        ("twice", None, "def twice():", "return 2"),
        ("TABLE", None, "TABLE = {", "}"),
        ("TABLE", "'llama'", "TABLE = {", "}"),
        ("WIDE", "'qwen'", '"qwen": ["q"],', '"qwen": ["q"],'),
        ("Layer.update", "self.scaling[name]", "self.scaling[name] = 1", "self.scaling[name] = 1"),
        ("Layer.update", "self.scaling[name]#2", "self.scaling[name] = 2", "self.scaling[name] = 2"),
        ("Layer.update", "self.scaling[name]#-1", "self.scaling[name] = 3", "self.scaling[name] = 3"),
        ("Layer.update", "self.scaling[name] .. self.scaling[name]#2", "self.scaling[name] = 1", "= 2"),
        ("Layer.update", "b", "a, b = split(name)", "a, b = split(name)"),
        ("Layer.update", "self.other", "use(self.other)", "use(self.other)"),
        ("<module>", "math", "@math.cache", "@math.cache"),
    ],
)
def test_find(file: Path, symbol: str, anchor: str | None, first: str, last: str) -> None:
    lines = text(file, symbol, anchor).split("\n")
    assert lines[0].strip().startswith(first)
    assert lines[-1].strip().endswith(last)


@pytest.mark.parametrize(
    ("symbol", "anchor", "sentence"),
    [
        ("Nowhere", None, "`Nowhere` was not found in layer.py"),
        ("Layer.inner", None, "`Layer.inner` was not found in layer.py"),
        ("Layer.update", "self.nothing", "`self.nothing` was not found in `Layer.update` of layer.py"),
        ("Layer.update", "self.scaling[name]#4", "was not found"),
        ("Layer.update", "self.scaling[name]#0", "was not found"),
        ("Layer.update", "if x", "is not an anchor"),
        ("Layer.update", "a .. self.scaling[name]", "runs backwards"),
    ],
)
def test_what_is_not_there_is_said(file: Path, symbol: str, anchor: str | None, sentence: str) -> None:
    with pytest.raises(SourceError, match=r".") as caught:
        find(file, symbol, anchor)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("symbol", ["Layer", "Layer.update", "long", "twice", "TABLE", "<module>"])
def test_a_quote_is_at_most_ten_lines_of_the_file(file: Path, symbol: str) -> None:
    found = quote(file, symbol)
    assert 1 <= len(found.lines) <= 10
    assert list(found.lines) == CODE.split("\n")[found.start - 1 : found.end]
    assert found.end - found.start + 1 == len(found.lines)


def test_the_quote_of_a_long_function_is_its_arithmetic(file: Path) -> None:
    found = quote(file, "long", limit=3)
    assert [line.strip() for line in found.lines] == ["y = x @ x.T", "z = y * y + y / 2", "return z - y"]
    assert '"""One line."""' not in "".join(quote(file, "long").lines)


BROKEN = {
    "syntax": (b"def f(:\n", "is not valid Python"),
    "null": (b"x = 1\0\n", "cannot be parsed|is not valid Python"),
    "encoding": (b"# -*- coding: utf-8 -*-\nx = '\xff'\n", "cannot be decoded"),
    "codec": (b"# -*- coding: klingon -*-\n", "cannot be decoded"),
    "deep": (b"x = " + b"(" * 2000 + b"1" + b")" * 2000, "cannot be parsed|is not valid Python"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_a_sentence(tmp_path: Path, name: str) -> None:
    data, pattern = BROKEN[name]
    path = tmp_path / "broken.py"
    path.write_bytes(data)
    with pytest.raises(SourceError, match=pattern):
        quote(path, "f")
    missing = cite_file(path, "f", alias="subject.py").missing
    assert missing is not None
    assert missing.startswith("subject.py ")


def test_deep_nesting_is_a_sentence_too(tmp_path: Path) -> None:
    path = tmp_path / "deep.py"
    path.write_text("def f():\n    return 1" + " + 1" * 2500 + "\n", encoding="utf-8")
    with pytest.raises(SourceError, match=r"deep\.py (is nested too deeply|cannot be parsed)"):
        find(path, "f", "wanted")
    with pytest.raises(SourceError, match=r"deep\.py (is nested too deeply|cannot be parsed)"):
        symbol_digest(path, "f")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.py")
    with pytest.raises(SourceError, match="is not a file"):
        find(tmp_path / "pipe.py", "f")


@pytest.mark.parametrize("path", ["absent.py", "folder"])
def test_a_missing_file_is_a_sentence(tmp_path: Path, path: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(SourceError, match="cannot be read"):
        find(tmp_path / path, "f")


@pytest.mark.parametrize(
    "data",
    [
        b"# -*- coding: latin-1 -*-\n# caf\xe9\nwanted = 1\n",
        "\ufeff# one\n# two \x0c three \u2028 four\nwanted = 1\n".encode(),
        b"# one\r\n# two\r\nwanted = 1\r\n",
    ],
    ids=["latin-1", "form feed", "crlf"],
)
def test_encodings_and_line_ends_do_not_shift_the_lines(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "odd.py"
    path.write_bytes(data)
    found = quote(path, "wanted")
    assert (found.start, found.lines) == (3, ("wanted = 1",))


def test_json_is_found_by_key(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{\n "rank": 1,\n "layers": "k|v"\n}', encoding="utf-8")
    assert quote(path, "layers").lines == (' "layers": "k|v"',)
    with pytest.raises(SourceError, match="`none` was not found"):
        quote(path, "none")


def test_the_digest_follows_the_code_and_nothing_else(tmp_path: Path) -> None:
    def digest(code: str) -> str:
        path = tmp_path / f"{abs(hash(code))}.py"
        path.write_text(code, encoding="utf-8")
        return symbol_digest(path, "f")

    plain = digest("def f(x):\n    return x * 2\n")
    assert digest('# moved\n\n\ndef f( x ):\n    """Says."""\n    return x*2  # twice\n') == plain
    assert digest("def f(x):\n    return 2 * x\n") != plain
