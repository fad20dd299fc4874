"""What a subject logs is heard, whatever its logger does with it, and is made as the process makes records."""

from __future__ import annotations

import logging
import warnings

import torch
from torch import nn

from harness.compare.ear import heard, is_silent, listening, speaks
from oracles.implementation import AdapterSpec
from tests.remote.served import served


def test_a_library_s_own_records_stay_its_own_and_are_heard() -> None:
    usual = logging.getLogRecordFactory()

    def own(*args: object, **named: object) -> logging.LogRecord:
        made = usual(*args, **named)
        made.request = "7"
        return made

    seen: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.request)  # type: ignore[method-assign, attr-defined]
    logger = logging.getLogger("tests.ear")
    logger.propagate = False
    logger.addHandler(handler)
    logging.setLogRecordFactory(own)
    try:
        with listening():
            speaks("library")
            logger.warning("nothing matches %s", "q")
            is_silent()
            assert heard("library") == ("nothing matches q",)
        assert logging.getLogRecordFactory() is own
    finally:
        logging.setLogRecordFactory(usual)
        logger.removeHandler(handler)
    assert seen == ["7"]


def test_what_a_file_left_open_warns_of_is_nobodys_word() -> None:
    """It is said whenever Python collects the file, whoever speaks then."""
    with listening():
        speaks("library")
        warnings.warn("unclosed file", ResourceWarning, stacklevel=1)
        warnings.warn("this is deprecated", DeprecationWarning, stacklevel=1)
        is_silent()
        assert heard("library") == ("this is deprecated",)


def test_what_torch_and_python_warn_of_is_not_the_library_s_word() -> None:
    """Neither from Python nor from below it, and wherever the warning points; a library's own of the same is heard."""
    with listening():
        speaks("library")
        nn.init.kaiming_uniform_(torch.empty(0, 3))
        warnings.warn("so it is (Triggered internally at a.cpp:1.)", stacklevel=1)
        logging.getLogger("torch.x").handle(_record("torch's", torch.__file__))
        logging.getLogger("y").handle(_record("python's", logging.__file__))
        of_the_layer(nn.Identity())
        is_silent()
        assert heard("library") == ("an empty adapter",)


def of_the_layer(module: nn.Module) -> None:
    """A library that warns in its forward pass, so that the warning points into torch."""
    module.register_forward_hook(lambda *_: warnings.warn("an empty adapter", stacklevel=2))
    module(torch.zeros(1))


def _record(words: str, file: str) -> logging.LogRecord:
    return logging.getLogRecordFactory()("x", logging.WARNING, file, 1, words, (), None)


def test_in_a_process_of_its_own_too() -> None:
    """The library's warning arrives, torch's does not."""
    subject = served("warns.py", "Warns")
    with listening():
        speaks("library")
        subject.adapt(nn.Linear(3, 2), AdapterSpec("lora", rank=1))
        is_silent()
        assert heard("library") == ("so it says", "rank 1 is small")
