"""The one error of everything that reads adapter folders and checkpoints."""

from __future__ import annotations


class Unreadable(Exception):
    """A folder that cannot be what it is said to be; the sentence names what was found and what was expected."""
