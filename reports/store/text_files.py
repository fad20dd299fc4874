"""Files read with a limit, and written whole or not at all."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import TextIO

from reports.errors import Malformed, Oversized, UnreadableFile


def read_text(path: Path, limit: int) -> str:
    """The text of a regular file of at most ``limit`` bytes. Raises ReportsError."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as handle:  # a FIFO must not block
            if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
                raise UnreadableFile(f"{path.name} is not a regular file")
            raw = handle.read(limit + 1)
    except OSError as error:
        raise UnreadableFile(f"{path} cannot be read: {error.strerror or error}") from None
    if len(raw) > limit:
        raise Oversized(f"{path.name} is larger than {limit // 2**20} MiB")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed(f"{path.name} is not UTF-8 text: {error.reason} at byte {error.start}") from None


def write_text(path: Path, text: str) -> None:
    """``text`` at ``path``, by way of a temporary file beside it: never half of it. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", dir=path.parent)
    try:
        with open(handle, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
        os.chmod(name, _mode(path))
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_stream(stream: TextIO, text: str) -> None:
    """``text`` on a stream, in UTF-8 whatever the locale."""
    buffer = getattr(stream, "buffer", None)
    if buffer is None:
        stream.write(text)
        return
    stream.flush()
    buffer.write(text.encode("utf-8"))
    buffer.flush()


def _mode(path: Path) -> int:
    """The permissions of the file that is replaced, else those a new file would have."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        umask = os.umask(0)
        os.umask(umask)
        return 0o666 & ~umask
