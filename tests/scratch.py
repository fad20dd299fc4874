"""A temporary folder for the processes of one command, which end without cleaning up after themselves."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def scratch() -> Iterator[None]:
    """Temporary files of this process, and of those that it forks, go into a folder that is removed at the end."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="audit-scratch-") as tempfile.tempdir:
        try:
            yield
        finally:
            tempfile.tempdir = before
