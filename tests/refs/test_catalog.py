"""The catalogue itself: well formed, true to the installed PEFT, and refused by name where it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from oracles.variants import VARIANTS
from refs import catalog as catalogue
from refs.errors import CatalogError, NotAvailableError
from refs.locate import locate, sha256_of
from refs.quotes import cite_target, quotes_of, symbol_digest
from refs.verify import check
from tests.refs.conftest import Pinned, write_catalog

CATALOG = catalogue.load()
PACKAGED = [a for a, r in CATALOG.files.items() if r.source.kind == "package"]
NAMED = ("shapes", "init", "scale", "forward", "save_load", "targets")


@pytest.mark.parametrize("alias", PACKAGED)
def test_the_installed_packages_are_the_pinned_ones(alias: str) -> None:
    reference = CATALOG.reference(alias)
    assert sha256_of(locate(reference)) == reference.sha256


@pytest.mark.parametrize("aspect", NAMED)
@pytest.mark.parametrize("variant", CATALOG.variants)
def test_every_aspect_is_quoted_from_peft_and_cited_from_the_authors(variant: str, aspect: str) -> None:
    found = quotes_of(CATALOG, variant, aspect)
    aliases = {citation.alias.partition("_")[0] for citation in found}
    authored = any(c.variant == variant and c.alias.startswith("orig") for c in CATALOG.cites)
    assert aliases == ({"peft", "orig"} if authored else {"peft"}) or (
        aspect == "targets" and "peft" in aliases
    )
    for citation in found:
        if citation.alias in PACKAGED:
            assert citation.missing is None, citation
            assert 1 <= len(citation.lines) <= 10


def assert_found(cite: catalogue.Cite) -> None:
    found = cite_target(CATALOG, cite.alias, cite.symbol, cite.anchor)
    assert found.missing is None, cite
    assert found.note is None, cite
    assert found.url is not None
    assert found.url.endswith(f"#L{found.start}-L{found.end}")


@pytest.mark.parametrize("variant", CATALOG.variants)
def test_every_cite_of_a_package_is_found(variant: str) -> None:
    for cite in CATALOG.cites:
        if cite.variant == variant and cite.alias in PACKAGED:
            assert_found(cite)


def test_every_cite_of_a_synced_file_is_found() -> None:
    here = {alias for alias in CATALOG.files if check(CATALOG, alias).state == "ok"} - set(PACKAGED)
    if not here:
        pytest.skip("none of the authors' files is synced: run `python -m refs sync`")
    for cite in CATALOG.cites:
        if cite.alias in here:
            assert_found(cite)


def test_every_cited_symbol_has_a_digest_and_it_is_the_pinned_one() -> None:
    for cite in CATALOG.cites:
        if cite.alias.endswith(".py"):
            assert cite.symbol in CATALOG.digests[cite.alias], cite
            if cite.alias in PACKAGED:
                path = locate(CATALOG.reference(cite.alias))
                assert symbol_digest(path, cite.symbol) == CATALOG.digests[cite.alias][cite.symbol]


@pytest.mark.parametrize(
    ("alias", "symbol", "anchor", "label"),
    [  # read off PEFT 0.21.2 by eye, once
        ("peft_lora_layer.py", "LoraLayer.update_layer", "self.scaling[adapter_name]#-1", "L281"),
        ("peft_delora_layer.py", "DeloraLayer._compute_delta", "delta", "L71"),
        ("peft_hra_layer.py", "HRALayer.update_layer", "self.hra_u[adapter_name]", "L80-L81"),
        ("peft_lora_dora.py", "DoraLinearLayer.get_weight_norm", "weight_norm", "L90"),
        ("orig_lora_layers.py", "Linear.__init__", "self.lora_A .. self.lora_B", "L109-L111"),
    ],
)
def test_line_numbers_are_those_of_the_file(alias: str, symbol: str, anchor: str, label: str) -> None:
    assert cite_target(CATALOG, alias, symbol, anchor).label == f"{alias}:{label}"


def test_what_is_not_synced_says_so(tmp_path: Path) -> None:
    found = cite_target(CATALOG, "orig_delora.py", "Linear.get_ABCD", cache=tmp_path)
    assert found.missing == "orig_delora.py is not synced: run `python -m refs sync`"
    assert found.label == "orig_delora.py"


def test_a_symbol_that_is_gone_says_so() -> None:
    found = cite_target(CATALOG, "peft_delora_layer.py", "DeloraLayer.gone")
    assert found.missing == "`DeloraLayer.gone` was not found in peft_delora_layer.py"


def test_a_package_that_is_not_installed_says_so(tmp_path: Path) -> None:
    source = 'kind = "package"\nname = "nosuch"\npin = "1"\nlicence = "MIT"\nurl = ""'
    toml = write_catalog(
        tmp_path, source, f'"a.py" = {{ path = "nosuch_at_all/a.py", sha256 = "{"0" * 64}" }}'
    )
    with pytest.raises(NotAvailableError, match="the package nosuch is not installed"):
        locate(catalogue.load(toml).reference("a.py"))


GOOD = 'kind = "package"\nname = "p"\npin = "1"\nlicence = "MIT"\nurl = ""'
FILE = f'"a.py" = {{ path = "p/a.py", sha256 = "{"0" * 64}" }}'


@pytest.mark.parametrize(
    ("source", "files", "cites", "sentence"),
    [
        ("kind = ", FILE, "", "is not valid TOML"),
        ('kind = "package"', FILE, "", "source `one`"),
        (GOOD.replace("package", "website"), FILE, "", "not package or repository"),
        (GOOD.replace("package", "repository"), FILE, "", "pinned by a full commit"),
        (GOOD, FILE.replace("p/a.py", "../a.py"), "", "is not a path inside"),
        (GOOD, FILE.replace("p/a.py", "/etc/a.py"), "", "is not a path inside"),
        (GOOD, FILE.replace("0" * 64, "0" * 63), "", "is not a sha256"),
        (GOOD, FILE, '[cites.lora]\nforwards = ["a.py:f"]', "unknown aspect"),
        (GOOD, FILE, '[cites.lora]\nforward = ["b.py:f"]', "there is no reference `b.py`"),
        (GOOD, FILE, '[cites.lora]\nforward = ["a.py"]', "is not ALIAS:SYMBOL"),
        (GOOD, "a = 1", "", "is malformed"),
        (GOOD.replace('url = ""', 'url = "{nosuch}"'), FILE, "", "is malformed: 'nosuch'"),
        (GOOD.replace("package", "repository").replace('"1"', "1"), FILE, "", "is malformed"),
    ],
)
def test_a_malformed_catalogue_is_refused(
    tmp_path: Path, source: str, files: str, cites: str, sentence: str
) -> None:
    toml = write_catalog(tmp_path, source, files, cites)
    with pytest.raises(CatalogError, match=r".") as caught:
        catalogue.load(toml)
    assert sentence in str(caught.value)


def test_the_variants_are_those_of_the_audit() -> None:
    assert set(CATALOG.variants) <= set(VARIANTS)


def test_unknown_names_are_refused(pinned: Pinned, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="`nosuch` is none of"):
        quotes_of(pinned.catalog, "nosuch", "forward")
    with pytest.raises(CatalogError, match="cannot be read"):
        catalogue.load(tmp_path / "none.toml")
