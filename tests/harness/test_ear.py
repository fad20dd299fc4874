"""What a subject logs is heard, whatever its logger does with it, and is made as the process makes records."""

from __future__ import annotations

import logging
import warnings

from harness.compare.ear import heard, is_silent, listening, speaks


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
