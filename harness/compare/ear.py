"""What a subject says aloud, its warnings and log records, kept while a claim is asked: part of what it does."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from harness.compare.blame import OURS, SHIPPED, TORCH

__all__ = ["about", "heard", "heard_before", "is_silent", "listening", "saying", "speaks", "utterances"]

_speakers: list[str] = []
_heard: dict[str, list[str]] = {}
_before: dict[tuple[str, str], dict[str, None]] = {}  # (who, of which method) -> what was said
_about: list[str] = [""]
_whose: list[object] = [None]
LONGEST = 300
PYTHON = os.path.dirname(os.path.realpath(os.__file__))
INSTALLED = ("site-packages", "dist-packages")
BY_TORCH = "Triggered internally at"  # what it says of warnings that come from below Python


def heard(who: str) -> tuple[str, ...]:
    """What ``who`` has said since the claim began, each sentence once."""
    return tuple(dict.fromkeys(_heard.get(who, ())))


def utterances(who: str) -> tuple[str, ...]:
    """The same, a sentence as often as it was said: what is said again is no longer than before in :func:`heard`."""
    return tuple(_heard.get(who, ()))


@contextmanager
def saying(who: str) -> Iterator[set[str]]:
    """Holds afterwards what ``who`` said aloud inside, also what it has said before."""
    said, before = set[str](), len(utterances(who))
    try:
        yield said
    finally:
        said.update(utterances(who)[before:])


def heard_before(who: str) -> tuple[str, ...]:
    """What ``who`` has said in any claim on this method in this process: a library may say a thing once only."""
    return tuple(_before.get((who, _about[0]), ()))


def about(variant: str) -> None:
    """What is said from now on is said of this method."""
    _about[0] = variant


def speaks(who: str) -> None:
    """What is said from now on is said by ``who``, until :func:`is_silent`."""
    _speakers.append(who)


def is_silent() -> None:
    """Whoever spoke last has ended."""
    _speakers.pop()


def _hear(words: str) -> None:
    if _speakers:
        said = " ".join(words.split())[:LONGEST]
        _heard.setdefault(_speakers[-1], []).append(said)
        _before.setdefault((_speakers[-1], _about[0]), {})[said] = None


def _heard_in(made: logging.LogRecord) -> logging.LogRecord:
    """A log record, heard as it is made: loggers that hand nothing on to the root are heard too."""
    if made.levelno >= logging.WARNING and is_own(made.pathname):
        with suppress(Exception):  # arguments that do not fit the message are the logger's to complain about
            _hear(made.getMessage())
    return made


def is_own(file: str) -> bool:
    """Whether what the code in a file says is a library's word: not torch's, Python's or the audit's."""
    if file.startswith(TORCH + os.sep):
        return False
    if file.startswith(OURS):
        return file.startswith(SHIPPED)
    below = os.path.relpath(os.path.realpath(file), PYTHON)
    return below.startswith(os.pardir) or any(part in below for part in INSTALLED)


def _issuer() -> str:
    """The file of the code that warns, whomever its warning is about."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename in (__file__, warnings.__file__):
        frame = frame.f_back
    return frame.f_code.co_filename if frame is not None else ""


@contextmanager
def listening(subject: object = None) -> Iterator[None]:
    """Warnings and log records (from WARNING on) are kept inside, and shown to nobody; what another one said is not."""
    _heard.clear()
    if subject is not _whose[0]:
        _before.clear()
        _whose[0] = subject
    handler, usual = logging.NullHandler(), logging.getLogRecordFactory()
    logging.getLogger().addHandler(handler)
    logging.setLogRecordFactory(lambda *args, **named: _heard_in(usual(*args, **named)))

    def show(message: Any, category: type[Warning] = Warning, *more: Any, **named: Any) -> None:
        # Of a file that somebody left open, whenever Python collects it; of how torch is used, by torch.
        if not issubclass(category, ResourceWarning) and BY_TORCH not in str(message) and is_own(_issuer()):
            _hear(str(message))

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = show
            yield
    finally:
        logging.getLogger().removeHandler(handler)
        logging.setLogRecordFactory(usual)
