"""Declared deviations: what a file may name, what it covers, and which docstrings are searched."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.engine import declarations
from harness.engine.checks import load_checks

ENTRY = """
[[deviation]]
check = "{check}"
variant = "{variant}"
oracle = "{oracle}"
reason = "by design"
docstring_words = ["Gaussian"]
"""


def written(
    folder: Path, check: str = "init.distribution", variant: str = "lora", oracle: str = "peft"
) -> Path:
    load_checks()
    path = folder / "d.toml"
    path.write_text(ENTRY.format(check=check, variant=variant, oracle=oracle))
    return path


@pytest.mark.parametrize("oracle", ["peft", "paper", "*"])
@pytest.mark.parametrize("check", ["init.distribution", "init.*"])
def test_what_exists_is_taken(tmp_path: Path, check: str, oracle: str) -> None:
    (made,) = declarations.load(written(tmp_path, check, oracle=oracle), {"lora": "A is gaussian."})
    assert (made.check, made.oracle, made.documented, made.occurred) == (check, oracle, True, None)
    assert not declarations.load(written(tmp_path, check), {"lora": "A is uniform."})[0].documented


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"oracle": "pfet"}, "oracle 'pfet' .* does not exist; expected one of peft, paper, .*, *"),
        ({"check": "init.distributions"}, "check 'init.distributions' .* does not exist"),
        ({"check": "inits.*"}, r"check 'inits\.\*' .* does not exist"),
        ({"check": "*"}, "does not exist"),
        ({"variant": "lokr"}, "variant 'lokr' .* does not exist"),
    ],
)
def test_what_does_not_exist_is_refused(tmp_path: Path, given: dict[str, str], says: str) -> None:
    with pytest.raises(declarations.BadDeviations, match=says):
        declarations.load(written(tmp_path, **given), {})
