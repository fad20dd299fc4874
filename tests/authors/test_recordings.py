"""The recordings as they are committed: complete, true to the papers' equations, refused when touched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from oracles.authors import available, recordings
from oracles.authors.availability import AUTHORS, provenance_of
from oracles.authors.family import RecordedCase
from oracles.authors.recordings import ManifestChangedError, RecordingChangedError, StaleRecordingError
from refs import catalog as catalogue
from refs.errors import NotAvailableError

CATALOG = catalogue.load()
KINDS = {f"{kind.variant}-{kind.oracle}": kind for kind in AUTHORS}


def read(name: str) -> list[RecordedCase]:
    kind = KINDS[name]
    return recordings.read(recordings.folder(kind.variant, kind.oracle), provenance_of(CATALOG, kind))


def chain(U: Tensor, eps: float = 0.0) -> Tensor:
    """H_1 H_2 ... H_r with H_i = I - 2 u u^T / (|u|^2 or (sqrt(|u|^2 + eps))^2)."""
    product = torch.eye(len(U), dtype=U.dtype)
    for u in U.mT:
        product = product - 2 * torch.outer(product @ u, u) / (u @ u + eps)
    return product


def projector(U: Tensor) -> Tensor:
    """I - 2 Q Q^T with the columns of U made orthonormal."""
    Q = torch.linalg.qr(U).Q
    return torch.eye(len(U), dtype=U.dtype) - 2 * Q @ Q.mT


def lora(case: RecordedCase) -> Tensor:
    """W + (alpha/r) B A."""
    at = case.parameters
    return case.weight + case.spec.alpha / case.spec.rank * at["B"] @ at["A"]


def pissa(case: RecordedCase) -> Tensor:
    """W_res + B A."""
    return case.parameters["W"] + case.parameters["B"] @ case.parameters["A"]


def dora(case: RecordedCase) -> Tensor:
    """m V / |V| by rows, V = W + (alpha/r) B A."""
    V = lora(case)
    return (case.parameters["m"] / V.norm(dim=1))[:, None] * V


def ia3(case: RecordedCase) -> Tensor:
    """diag(l) W, or W diag(l) for the feed-forward side."""
    gate = case.parameters["l"]
    return case.weight * (gate[None, :] if case.spec.feedforward else gate[:, None])


def hra(case: RecordedCase) -> Tensor:
    """W H_1 ... H_r."""
    U = case.parameters["U"]
    return case.weight @ (projector(U) if case.spec.gram_schmidt else chain(U))


def hra_llama(case: RecordedCase) -> Tensor:
    """H_r ... H_1 W, each a reflection up to eps 6e-5."""
    U = case.parameters["U"]
    return (projector(U) if case.spec.gram_schmidt else chain(U, 6e-5).mT) @ case.weight


def delora(case: RecordedCase) -> Tensor:
    """W + (lambda/r) (B Xi A - D Phi C) |W|_columns, both terms with the current lambda."""
    at, norms = case.parameters, case.weight.norm(dim=0)

    def term(B: Tensor, A: Tensor) -> Tensor:
        return B @ torch.diag(1 / (B.norm(dim=0) * A.norm(dim=1))) @ A

    delta = term(at["B"], at["A"]) - term(at["D"], at["C"])
    return case.weight + at["lambda"] / case.spec.rank * delta * norms


EQUATIONS: dict[str, Callable[[RecordedCase], Tensor]] = {
    "lora-author": lora,
    "pissa-author": pissa,
    "dora-author": dora,
    "ia3-author": ia3,
    "hra-author": hra,
    "hra-author_nlu": hra,
    "hra-author_llama": hra_llama,
    "hra-author_llama_gs": hra_llama,
    "delora-author": delora,
}


def constant(case: RecordedCase) -> Tensor | float:
    """What the bias becomes: (IA)3 gates it on the output side, nobody else touches it."""
    if case.bias is None:
        return 0.0
    gated = case.spec.variant == "ia3" and not case.spec.feedforward
    return case.bias * case.parameters["l"] if gated else case.bias


def exact(name: str) -> list[RecordedCase]:
    return [case for case in read(name) if case.weight.dtype == torch.float64]


def close(found: Tensor, wanted: Tensor, what: str) -> None:
    """Equal in float64 up to 1e-12 of the larger norm."""
    error = (found - wanted).norm()
    assert error <= 1e-12 * (1 + wanted.norm()), f"{what}: {error:.1e} apart"


@pytest.mark.parametrize("name", KINDS)
def test_the_recorded_forward_is_the_equation(name: str) -> None:
    for case in exact(name):
        weight = EQUATIONS[name](case)
        close(case.expected["effective_weight"], weight, f"{case.id} W'")
        close(case.expected["forward"], case.x @ weight.mT + constant(case), f"{case.id} y")


@pytest.mark.parametrize("name", KINDS)
def test_the_recorded_gradients_are_those_of_the_equation(name: str) -> None:
    """DoRA's norm is a constant to its author (section 4.3 of the paper), so it is one here."""
    for case in exact(name):
        if case.initial and name in ("hra-author", "hra-author_nlu", "hra-author_llama"):
            continue  # tested away from the start, where the reflections do not cancel
        leaves = {n: t.clone().requires_grad_(True) for n, t in case.parameters.items()}
        moved = RecordedCase(**{**vars(case), "parameters": leaves})
        weight = EQUATIONS[name](moved)
        if name == "dora-author":
            V = lora(moved)
            weight = (leaves["m"] / V.norm(dim=1).detach())[:, None] * V
        ((case.x @ weight.mT + constant(moved)) * case.cotangent).sum().backward()
        for key, value in case.expected.items():
            if key.startswith("grad.") and key != "grad.x":
                wanted = leaves[key.removeprefix("grad.")].grad
                assert wanted is not None
                close(value, wanted, f"{case.id} {key}")
        close(case.expected["grad.x"], case.cotangent @ weight.detach(), f"{case.id} grad.x")


@pytest.mark.parametrize("name", KINDS)
def test_the_recorded_training_starts_at_the_recorded_output(name: str) -> None:
    for case in exact(name):
        first = 0.5 * (case.expected["forward"] - case.cotangent).square().mean()
        close(case.expected["losses"][0], first, f"{case.id} first loss")
        moved = [k for k in case.expected if k.startswith("trained.")]
        assert moved
        still = all(case.expected[f"grad.{k[8:]}"].norm() < 1e-9 for k in moved)
        assert still or not torch.equal(case.expected["losses"][0], case.expected["losses"][-1])


@pytest.mark.parametrize("name", KINDS)
def test_a_merge_is_the_effective_weight(name: str) -> None:
    for case in exact(name):
        if "merged" in case.expected:
            close(case.expected["merged"], case.expected["effective_weight"], f"{case.id} merged")
    merges = any("merged" in case.expected for case in exact(name))
    assert merges == (name not in ("ia3-author", "hra-author", "hra-author_nlu"))


@pytest.mark.parametrize("name", KINDS)
def test_every_recording_is_varied_and_finite(name: str) -> None:
    cases = read(name)
    assert len(cases) >= 20
    assert {case.initial for case in cases} == {True, False}
    assert {torch.float64, torch.float32} <= {case.weight.dtype for case in cases}
    assert {case.bias is None for case in cases} == {True, False}
    assert len({case.id for case in cases}) == len(cases)
    for case in cases:
        assert all(torch.isfinite(tensor).all() for tensor in case.expected.values()), case.id


def test_the_recordings_are_small() -> None:
    assert sum(path.stat().st_size for path in recordings.ROOT.rglob("*")) < 4_000_000


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The recordings, where they may be harmed."""
    shutil.copytree(recordings.ROOT, tmp_path / "recordings")
    return tmp_path / "recordings"


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def replay(root: Path) -> list[RecordedCase]:
    return recordings.read(root / "delora-author", provenance_of(CATALOG, KINDS["delora-author"]))


@pytest.mark.parametrize("at", [9, 3000, -1])
def test_a_flipped_byte_in_the_tensors_is_refused(copied: Path, at: int) -> None:
    replay(copied)
    flip(copied / "delora-author" / "cases.safetensors", at)
    with pytest.raises(
        RecordingChangedError, match="the tensors of the recording delora-author were changed"
    ):
        replay(copied)


@pytest.mark.parametrize("at", [0, 12, 200, 1500, -40])
def test_a_flipped_byte_in_the_manifest_is_refused(copied: Path, at: int) -> None:
    flip(copied / "delora-author" / "manifest.json", at)
    with pytest.raises(ManifestChangedError, match="manifest of the recording delora-author"):
        replay(copied)


def test_a_recording_of_another_commit_is_refused(copied: Path) -> None:
    path = copied / "delora-author" / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["provenance"]["pin"] = "0" * 40
    manifest["seal"] = recordings.seal(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(StaleRecordingError, match=f"of pin {'0' * 40}"):
        replay(copied)


@pytest.mark.parametrize("name", ["manifest.json", "cases.safetensors"])
def test_a_recording_with_a_part_missing_is_refused(copied: Path, name: str) -> None:
    (copied / "delora-author" / name).unlink()
    with pytest.raises((NotAvailableError, RecordingChangedError), match="recording delora-author"):
        replay(copied)


def test_without_files_the_recordings_stand_in(tmp_path: Path) -> None:
    for variant in catalogue.load().variants:
        for author in available(variant, cache=tmp_path):
            assert author.kind == ("live" if variant == "lora" else "recorded")
            assert author.provenance.sha256 == CATALOG.reference(author.provenance.alias).sha256
            if author.kind == "recorded":
                assert "is not synced" in author.reason
                assert len(author.cases()) >= 20
                with pytest.raises(NotAvailableError, match="is recorded"):
                    author.implementation()


def test_without_files_and_with_a_harmed_recording_the_oracle_is_absent(copied: Path, tmp_path: Path) -> None:
    flip(copied / "hra-author_nlu" / "cases.safetensors", -1)
    kinds = {a.id: a for a in available("hra", cache=tmp_path / "none", recordings=copied)}
    assert {i: a.kind for i, a in kinds.items() if a.kind != "recorded"} == {"author_nlu": "absent"}
    assert "were changed" in kinds["author_nlu"].reason
    with pytest.raises(NotAvailableError, match="hra/author_nlu is absent"):
        kinds["author_nlu"].cases()
