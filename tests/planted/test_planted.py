"""The runner of the planted faults: places are found by name, and a fault that is planted is told."""

from __future__ import annotations

import argparse

import pytest

from tests.faults import audits
from tests.faults.audits import Found, Result
from tests.planted import __main__
from tests.planted.catalogue import FAULTS, Fault
from tests.planted.libraries import LIBRARIES
from tests.planted.places import NoSuchPlace, Place, planted

SOURCE = '''
class Layer:
    def __init__(self, rank, alpha):
        self.scaling = alpha / rank
        self.kept = {}

    def forward(self, x):
        """Add the update."""
        if self.on:
            return self.base(x) + self.up(self.down(x)) * self.scaling["default"]
        self.weight.data += self.update()
'''


@pytest.mark.parametrize(
    ("symbol", "find", "nth", "by", "before", "after"),
    [
        ("Layer.__init__", "assign scaling", 0, "{left}", "alpha / rank", "(alpha)"),
        ("Layer.forward", "attr scaling", 0, "1.0", 'self.scaling["default"]', "(1.0)"),
        ("Layer.forward", "call down", 0, "{arg0}", "self.down(x)", "(x)"),
        ("Layer.forward", "call down", 0, "{func}({args}, True)", "self.down(x)", "(self.down(x, True))"),
        ("Layer.forward", "op Mult", 0, "{left}", '* self.scaling["default"]', ""),
        ("Layer.forward", "return", 0, "{0}.float()", "return self", "return ((self"),
        ("Layer.forward", "test", 0, "False", "if self.on", "if (False)"),
        ("Layer.forward", "aug data", 0, "{target} -= {value}", "+= self.update()", "-= (self.update())"),
        ("Layer.forward", "stmt nothing", 0, "pass", "", None),
        ("Layer.forward", "call down", 1, "", "", None),
        ("Layer.backward", "call down", 0, "", "", None),
        ("Layer.__init__", "stmt kept", 0, "pass", "self.kept = {}", "pass"),
    ],
)
def test_a_place_is_found_by_its_name(
    symbol: str, find: str, nth: int, by: str, before: str, after: str | None
) -> None:
    """What is found is replaced and nothing else; what is not there is said."""
    places = [Place("layer.py", symbol, find, by, nth)]
    if after is None:
        with pytest.raises(NoSuchPlace):
            planted(SOURCE, places)
        return
    changed = planted(SOURCE, places)
    compile(changed, "layer.py", "exec")
    assert after in changed
    assert before not in changed


def test_a_statement_goes_behind_the_docstring() -> None:
    lines = planted(SOURCE, [Place("layer.py", "Layer.forward", "body", "x = x.clone()")]).splitlines()
    assert lines[lines.index("        x = x.clone()") - 1] == '        """Add the update."""'


def test_text_that_is_not_ascii_before_a_place_moves_nothing() -> None:
    source = 'def scale(r):\n    return {"α": 1}["α"] / r\n'
    assert planted(source, [Place("s.py", "scale", "op Div", "{right}")]) == "def scale(r):\n    return (r)\n"


@pytest.mark.parametrize("library", LIBRARIES.values(), ids=lambda library: library.name)
def test_every_fault_has_a_place_or_a_reason_in_every_library(library: object) -> None:
    """The forty are the same everywhere; the subject's file is there."""
    places = library.places  # type: ignore[attr-defined]
    assert set(places) == {fault.id for fault in FAULTS}
    assert all(isinstance(where, str) or where for where in places.values())
    assert (audits.ROOT / library.ref.partition(":")[0]).is_file()  # type: ignore[attr-defined]


def test_there_are_forty_of_them() -> None:
    assert len(FAULTS) == len({fault.id for fault in FAULTS}) == 40


FAULT = Fault("scale.one", "the update is not scaled", "scale")
CLAIM = "forward.random_parameters[lora-paper]"
BUG = Found("BUG", "critical", "no scale", "no scale", (CLAIM,))


@pytest.mark.parametrize(
    ("sound", "broken", "word"),
    [
        (Result((), {CLAIM: "pass"}), Result((BUG,), {CLAIM: "fail"}), "named"),
        (
            Result((), {CLAIM: "pass"}),
            Result((Found("BUG", "minor", "it", "it", (CLAIM,)),), {CLAIM: "fail"}),
            "killed",
        ),
        (
            Result((), {CLAIM: "pass"}),
            Result((Found("OK-doc", "minor", "it", "it", (CLAIM,)),), {CLAIM: "fail"}),
            "told",
        ),
        (Result((), {CLAIM: "pass"}), Result((), {CLAIM: "unverified"}), "killed"),
        (Result((), {CLAIM: "fail"}), Result((BUG,), {CLAIM: "fail"}), "lived"),
        (Result((), {CLAIM: "pass"}), Result((), {CLAIM: "pass"}), "lived"),
        (Result(error="no"), Result(), "error"),
    ],
)
def test_a_fault_is_killed_by_what_the_sound_library_passes(sound: Result, broken: Result, word: str) -> None:
    assert __main__.judged("lib", FAULT, sound, broken).word == word


def test_the_score_leaves_out_what_has_no_place() -> None:
    fates = [__main__.Fate("lib", FAULT, word, "") for word in ("named", "killed", "lived", "nowhere")]  # type: ignore[arg-type]
    assert __main__.score(fates) == pytest.approx(2 / 3)
    assert "| lib | 3 | 1 | 2 | 0 | 1 | 1 | 67 % |" in __main__.report(fates)


def test_a_fault_is_told_in_the_library_that_is_installed(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From end to end on the PEFT that is here: one fault planted, one claim that fails, by its right name."""
    monkeypatch.setattr(__main__, "FIRST", ("forward.random_parameters", "scale.effective"))
    monkeypatch.setattr(audits.results, "__defaults__", None)
    monkeypatch.setitem(audits.results.__kwdefaults__, "folder", tmp_path)  # type: ignore[arg-type]
    given = argparse.Namespace(keep=False, seconds=300.0)
    fault = next(f for f in FAULTS if f.id == "scale.one")
    (fate,) = __main__.fates_in(LIBRARIES["peft"], [fault], given)
    assert (fate.word, fate.by) == ("named", "no scale: α is ignored")


def test_a_pattern_that_finds_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["no-such-fault"]) == 4
    assert "no fault's id" in capsys.readouterr().err
