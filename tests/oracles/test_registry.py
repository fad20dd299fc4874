"""The oracles that are there, and what happens when one has been tampered with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cases.profiles import Profile
from harness.engine.session import OF_AUTHORS, claims_for
from harness.subjects import resolve
from oracles import registry
from oracles.authors import available, recordings
from oracles.authors.replay import Absent, Replay
from oracles.variants import VARIANTS
from refs import catalog as catalogue
from refs.locate import cache_path
from reports.model import Claim

HOUSE = Path(__file__).parents[2]
FEW = Profile("few", 1, 0)


def test_author_means_all_of_the_authors() -> None:
    assert registry.named("author") == ["author", "author_llama", "author_llama_gs", "author_nlu"]
    assert registry.named("author_llama") == ["author_llama"]
    assert registry.named("peft") == ["peft"]
    assert registry.named("nobody") == []


def test_every_variant_has_peft_the_equations_and_an_author() -> None:
    for variant in VARIANTS:
        for id_ in ("peft", "paper", *(("author",) if available(variant) else ())):
            assert variant in registry.find(id_, variant).variants
    with pytest.raises(KeyError, match="author_nlu"):
        registry.find("author_nlu", "lora")


def test_provenance_is_the_catalogues(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUDIT_REFS_CACHE", str(tmp_path))
    found = registry.find("author", "delora").provenance()
    pinned = catalogue.load().reference("orig_delora.py")
    assert found is not None
    assert (found.kind, found.repo, found.commit) == ("recorded", "ExplainableML/DeLoRA", pinned.source.pin)
    assert (found.sha256, found.licence) == (pinned.sha256, "MIT")
    assert (found.recorded_on or "").startswith("with torch 2.")
    lora = registry.find("author", "lora").provenance()
    assert lora is not None
    assert (lora.kind, lora.package, lora.version, lora.recorded_on) == ("live", "loralib", "0.1.2", None)


def test_nothing_of_the_authors_is_read_before_it_is_asked_for() -> None:
    code = (
        "import sys, oracles.registry as r; r.ids(); r.find('author', 'hra'); print('loralib' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=HOUSE,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"


def asked(variant: str) -> list[Claim]:
    """What the first author of a variant is asked of lora_lite."""
    subject = resolve.resolve("lora_lite").implementation
    return claims_for(
        subject, variants=[variant], oracles=["author"], checks=lambda c: c.id in OF_AUTHORS, profile=FEW
    )


def all_unverified(variant: str, *words: str) -> None:
    """The oracle is absent, says why, and every claim against it stays unverified with that reason."""
    entry = registry.find("author", variant)
    assert entry.provenance() is None
    assert isinstance(entry.make(), Absent)
    claims = asked(variant)
    assert claims
    for claim in claims:
        assert claim.outcome == "unverified", claim
        assert all(word in (claim.reason or "") for word in words), claim.reason


def test_a_shipped_subject_as_a_file_does_not_put_its_neighbours_in_the_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """transformers looks for `hqq`, and would find the subject of that name; anybody else's library may lie beside."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    resolve.resolve(f"{resolve.SHIPPED}/lora_lite.py:LoraLite")
    assert str(resolve.SHIPPED) not in sys.path


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The recordings in a folder of their own, nothing synced."""
    shutil.copytree(recordings.ROOT, tmp_path / "recordings")
    monkeypatch.setattr(recordings, "ROOT", tmp_path / "recordings")
    monkeypatch.setenv("AUDIT_REFS_CACHE", str(tmp_path / "nothing synced"))
    return tmp_path / "recordings"


def flip(path: Path, at: int) -> None:
    """One bit of one byte."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_the_copy_itself_is_fine(copied: Path) -> None:
    assert isinstance(registry.find("author", "dora").make(), Replay)


@pytest.mark.parametrize("variant", ["dora", "delora"])
def test_a_byte_of_a_recordings_tensors(copied: Path, variant: str) -> None:
    flip(copied / f"{variant}-author" / "cases.safetensors", -1)
    all_unverified(variant, f"{variant}-author were changed", "another sha256")


def test_a_byte_of_a_manifest(copied: Path) -> None:
    path = copied / "ia3-author" / "manifest.json"
    flip(path, path.read_bytes().index(b"8x8"))
    all_unverified("ia3", "manifest of the recording ia3-author was changed")


def test_a_manifest_of_another_pin(copied: Path) -> None:
    path = copied / "ia3-author" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["provenance"]["pin"] = "0" * 40
    manifest["seal"] = recordings.seal(manifest)
    path.write_text(json.dumps(manifest))
    all_unverified("ia3", "ia3-author is of pin 0000")


def test_no_recording_at_all(copied: Path) -> None:
    shutil.rmtree(copied / "pissa-author")
    all_unverified("pissa", "not synced", "no recording pissa-author")


@pytest.mark.parametrize(("variant", "alias"), [("dora", "orig_dora.py"), ("ia3", "orig_ia3_config.json")])
def test_a_synced_file_that_is_not_the_pinned_one(copied: Path, variant: str, alias: str) -> None:
    path = cache_path(catalogue.load().reference(alias))
    path.parent.mkdir(parents=True)
    path.write_text("raise SystemExit('this must never run')\n")
    all_unverified(variant, f"{alias} was changed", "is pinned")


@pytest.mark.parametrize("variant", ["dora", "hra"])
def test_a_byte_of_a_synced_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variant: str) -> None:
    author = available(variant)[0]
    if author.kind != "live":
        pytest.skip(author.reason)
    reference = catalogue.load().reference(author.provenance.alias)
    synced, own = cache_path(reference), cache_path(reference, tmp_path)
    own.parent.mkdir(parents=True)
    shutil.copy(synced, own)
    flip(own, 10)
    monkeypatch.setenv("AUDIT_REFS_CACHE", str(tmp_path))
    all_unverified(variant, f"{author.provenance.alias} was changed")


def test_the_audit_finishes_and_says_which(copied: Path, tmp_path: Path) -> None:
    flip(copied / "ia3-author" / "cases.safetensors", -1)
    target = tmp_path / "audit.json"
    options = [
        "harness/",
        "--variant=ia3",
        "--oracle=author",
        f"--audit-json={target}",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    code = (
        "import sys, pathlib, pytest; from oracles.authors import recordings; "
        f"recordings.ROOT = pathlib.Path({str(copied)!r}); sys.exit(pytest.main({options!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=HOUSE, env=dict(os.environ), capture_output=True, text=True
    )
    audit = json.loads(target.read_text())
    assert done.returncode == 1, done.stdout + done.stderr
    assert audit["complete"] is True
    assert audit["oracles"] == []
    assert {c["outcome"] for c in audit["claims"]} == {"unverified"}
    assert audit["verdicts"]["ia3"]["verdict"] == "Partial"
