"""Save and load: an adapter comes back as it was, carries what it needs and no more, and bad files are refused."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import nn

from harness.cases.layer_cases import Case, Domain
from harness.compare import comes_back, rank_stabilised, rounding, saved_files
from harness.compare.context import Context
from harness.compare.ear import saying
from harness.compare.exchanged import Passage, explained, names_of, on_the_audits_model
from harness.compare.layer import Layer, SubjectRaised, answering, as_layer, said
from harness.compare.outcome import Deviation, NotApplicable, OutsideDomain, ToldElsewhere
from harness.compare.own_reading import of_the_library, reads_itself
from harness.compare.probing import coefficient, effective, without_adapter
from harness.compare.saving import (
    IN_HALF,
    load,
    moved_by,
    offered,
    same_output,
    saved,
    stored_in_half,
)
from harness.compare.thresholds import (
    BASE_CHANGED,
    FAR_MORE,
    ROUNDOFFS,
    SAME_FUNCTION,
    SAME_UPDATE,
    THRESHOLDS,
)
from harness.engine.checks import check
from oracles.seeding import seed_torch
from oracles.variants import VARIANTS, Variant
from reports.model import Diagnosis

FILES = Domain(dtypes=("float32",), sizes=(3, 8), ranks=(1, 8), batches=((4,),))
EXAMPLES = 3


PICKLED = Diagnosis(
    "save_load.pickle",
    "adapters are saved with pickle (torch.save)",
    "loading a checkpoint from somebody else could run their code, unless the loader takes weights only",
    agrees_with="the authors' own scripts, which use torch.save",
    documented_by=("pickle", r"torch\.save"),
    severity="minor",
    remedy="write tensors with safetensors, or read them with `torch.load(..., weights_only=True)`",
)


READ_AS_TENSORS = dataclasses.replace(
    PICKLED,
    failure_mode="who reads the checkpoint elsewhere, with a loader that is not told to take weights only, could run "
    "somebody's code",
    remedy="write tensors with safetensors",
)


@check(
    "save_load",
    "major",
    title="a saved adapter does not come back as it was",
    failure_mode="what is deployed from the checkpoint would not be what was trained",
    domain=FILES,
    against=("paper",),
    diagnose=False,
)
def test_round_trip(context: Context, case: Case) -> None:
    """Loaded onto a fresh copy of the base, every tensor is bitwise as saved and the output is the same."""
    _round_trip(context, case)


@check(
    "save_load",
    "major",
    title="in one of its modes a saved adapter does not come back as it was",
    failure_mode="what is deployed from the checkpoint would not be what was trained",
    domain=FILES,
    examples=EXAMPLES,
    against=("paper",),
    modes=True,
    follows=("save_load.round_trip", "shapes.modes"),
    diagnose=False,
)
def test_modes(context: Context, case: Case) -> None:
    """In each mode, a saved adapter comes back bitwise, on a fresh copy of the base."""
    _round_trip(context, case)


@check(
    "save_load",
    "critical",
    title="an adapter with rank-stabilised scaling does not come back as it was",
    failure_mode="what is deployed from the checkpoint acts more strongly or less than what was trained",
    domain=dataclasses.replace(FILES, ranks=rank_stabilised.DRAWN.ranks, mode=rank_stabilised.NAME),
    examples=EXAMPLES,
    against=("paper",),
    applies=rank_stabilised.has_it,
    follows=("save_load.round_trip", "scale.rank_stabilised"),
    diagnose=False,
    may_refuse=True,
)
def test_rank_stabilised(context: Context, case: Case) -> None:
    """With α/√r in place of α/r, a saved adapter comes back bitwise and acts as strongly."""
    rank_stabilised.is_offered(context, case)
    _round_trip(context, case)


RESCALED = Diagnosis(
    "save_load.rescaled",
    "the loaded adapter has the saved tensors and contributes a multiple of what the saved one does",
    "what is deployed from the checkpoint would act more or less strongly than what was trained",
    remedy="save alpha, or the factor itself, with the tensors, and use it when the file is loaded",
)
ALPHA_LOST = dataclasses.replace(
    RESCALED,
    mistake="save_load.alpha_lost",
    summary="alpha is not in the file, and the loaded adapter has another: it contributes a multiple of what was saved",
)


def _round_trip(context: Context, case: Case) -> None:
    with saved(context, case) as (layer, path):
        loaded = load(context, case.base(), case, path)
        comes_back.same_slots(context, case, layer, loaded, path)
        try:
            same_output(context, case, layer, loaded, "output after loading")
        except Deviation as found:
            raise _rescaled(found, context, case, layer, loaded) from None


def alpha_is_stored(context: Context, case: Case, layer: Layer) -> bool | None:
    """Whether two adapters that differ in alpha alone are saved as different files.

    None where two files of one adapter differ, too: a date, say.
    """
    other = case.but(alpha=2 * case.spec.alpha + 1)
    twin = context.layer(other)
    twin.write(layer.values())
    held = _bytes_of(context, layer)
    return None if held != _bytes_of(context, layer) else held != _bytes_of(context, twin)


def _bytes_of(context: Context, layer: Layer) -> list[tuple[str, list[int]]]:
    """What is in each file, sorted: the order of what safetensors keeps beside the tensors is another every time."""
    with tempfile.TemporaryDirectory(prefix="audit-") as folder:
        offered(context, lambda: context.subject.save(layer.adapted, Path(folder) / "adapter"), "save")
        files = sorted(p for p in Path(folder).rglob("*") if p.is_file())
        return [(str(p.relative_to(folder)), sorted(p.read_bytes())) for p in files]


def _rescaled(found: Deviation, context: Context, case: Case, before: Layer, after: Layer) -> Deviation:
    """The deviation with its name, where the loaded adapter contributes a multiple of the saved one."""
    base = without_adapter(case, before.values())
    with torch.no_grad():
        wanted, actual = before(case.x).double() - base, after(case.x).double() - base
    if not bool(wanted.any()):
        return found
    c = coefficient(actual, wanted)
    if float(torch.linalg.vector_norm(actual - c * wanted)) > SAME_UPDATE * float(
        torch.linalg.vector_norm(wanted)
    ):
        return found
    found.diagnosis = ALPHA_LOST if alpha_is_stored(context, case, before) is False else RESCALED
    return found.with_note(f"the loaded adapter contributes {c:.4g} times what the saved one does")


@check(
    "save_load",
    "major",
    title="over a half-precision base a saved adapter does not come back as it was",
    failure_mode="what is deployed from the checkpoint would not be what was trained",
    domain=dataclasses.replace(FILES, dtypes=("bfloat16",)),
    examples=EXAMPLES,
    against=("paper",),
    follows=("save_load.round_trip", "dtype.output", "dtype.identity", "dtype.forward"),
    diagnose=False,
)
def test_half(context: Context, case: Case) -> None:
    """Over a bf16 base, too, every tensor comes back bitwise, whatever dtype the adapter keeps it in."""
    _round_trip(context, case)


@check(
    "save_load",
    "major",
    title="a loaded adapter drops nothing, or something else than the one that was saved",
    failure_mode="training that is resumed from a checkpoint would be another training",
    domain=dataclasses.replace(FILES, dropout=0.4, batches=((16,),)),
    examples=EXAMPLES,
    against=("paper",),
    applies=lambda variant: variant.has_dropout,
    follows=("save_load.round_trip", "dropout.active", "dropout.off_in_eval"),
    diagnose=False,
)
def test_dropout(context: Context, case: Case) -> None:
    """With p > 0, loaded with the same spec, training mode draws the masks that the saved adapter draws."""
    with saved(context, case) as (layer, path):
        loaded = load(context, case.base(), case, path)
        if not _computes_alike(layer, loaded, case):
            raise ToldElsewhere(
                "what is loaded is another adapter without dropout, too", "save_load.round_trip"
            )
        for each in (layer, loaded):
            each.train()
        with torch.no_grad():
            seed_torch(case.seed)
            wanted = layer(case.x).double()
            seed_torch(case.seed)
            actual = loaded(case.x).double()
    size = float(torch.linalg.vector_norm(wanted))
    context.judge(
        case, "output in training mode after loading", actual, wanted, rounding.roundoff(torch.float32) * size
    )


def _computes_alike(saved: Layer, loaded: Layer, case: Case) -> bool:
    """Whether both answer alike in evaluation mode, but for rounding."""
    for each in (saved, loaded):
        each.train(False)
    with torch.no_grad():
        wanted, actual = saved(case.x).double(), loaded(case.x).double()
    return float((actual - wanted).norm()) <= SAME_FUNCTION * float(wanted.norm())


@check(
    "save_load",
    "major",
    title="the saved adapter lacks tensors that define it, or carries the base weight",
    failure_mode="a checkpoint that cannot be applied elsewhere, or is as large as the model",
    domain=FILES,
    examples=EXAMPLES,
    against=("paper",),
    follows=("save_load.round_trip", "save_load.other_base"),
    diagnose=False,
)
def test_stored(context: Context, case: Case) -> None:
    """Every canonical parameter and buffer is in the files; the base weight and bias are not (but for PiSSA).

    Of torch's own files, where they can be read as tensors alone, the latter is asked.
    """
    with saved(context, case) as (layer, path):
        found = saved_files.stored(path)
        archived = saved_files.opened(found.pickles)
        if not found.safetensors and not archived:
            raise OutsideDomain("the subject's files are of a kind that is not looked into")
        if found.safetensors:
            _all_there(context, case, layer, found.tensors)
        if context.variant.base is None:
            carries = saved_files.holds(found.tensors | archived, case.weight)
            with of_the_library(context.subject):
                context.demand(
                    not carries, case, "the base weight in the saved files", "not stored", "stored"
                )


def _all_there(context: Context, case: Case, layer: Layer, stored: dict[str, torch.Tensor]) -> None:
    for tensor in context.variant.tensors:
        if tensor.role != "base" and tensor.name in layer.names:
            # A slot whose canonical value is computed may be stored as it lives in the subject.
            values = (layer.value(tensor.name), layer.raw(tensor.name).detach())
            if not any(saved_files.holds(stored, value) for value in values):
                raise _not_stored(case, tensor.name, layer, stored)


def _not_stored(case: Case, name: str, layer: Layer, stored: dict[str, torch.Tensor]) -> Deviation:
    """What is told of a tensor that is not in the files as it is: it may be there with fewer digits."""
    quantity, half = f"{name} in the saved files", stored_in_half(layer, name, stored)
    if half is None:
        return Deviation(case, quantity, "stored", "missing")
    return Deviation(case, quantity, "stored as it is", f"rounded to {half}", diagnosis=IN_HALF)


@check(
    "save_load",
    "minor",
    title="adapters are saved as pickles",
    failure_mode="loading a checkpoint from somebody else could run their code",
    domain=FILES,
    examples=1,
    against=("peft",),
    diagnose=False,
)
def test_format(context: Context, case: Case) -> None:
    """The files hold tensors and text, as the reference's safetensors do, not pickled objects."""
    with saved(context, case) as (_, path):
        names = [p.name for p in saved_files.stored(path).pickles]
        if names:
            told = READ_AS_TENSORS if _runs_nothing(context, case, path) else PICKLED
            raise Deviation(case, "pickled files", "none", ", ".join(names), diagnosis=told)


def _runs_nothing(context: Context, case: Case, path: Path) -> bool:
    """Whether code in the checkpoint's place is not run."""
    flag = saved_files.booby_trap(path)
    with suppress(SubjectRaised):
        load(context, case.base(), case, path)
    return not flag.exists()


def _unlike(variant: Variant) -> Variant:
    """The simplest method that shares no tensor with this one."""
    names = {t.name for t in variant.tensors}
    others = [v for v in VARIANTS.values() if names.isdisjoint(t.name for t in v.tensors)]
    return min(others, key=lambda v: len(v.tensors))


def _damage() -> dict[str, Callable[[Path, list[torch.Tensor]], object]]:
    return {
        "cut in half": saved_files.truncate,
        "with a tensor missing": saved_files.drop_key,
        "with a tensor of another shape": saved_files.misshape,
    }


@check(
    "save_load",
    "major",
    title="a damaged file is loaded as if it were whole, or leaves the model changed",
    failure_mode="a broken download would run with a random or partial adapter, or leave the model damaged",
    domain=FILES,
    examples=EXAMPLES,
    against=("paper",),
    diagnose=False,
)
def test_bad_files(context: Context, case: Case) -> None:
    """Truncated, missing-key, wrong-shape and other-method files raise, and the base computes what it did."""
    if call := reads_itself(context.subject):
        raise OutsideDomain(f"the subject file reads what was saved ({call}), and not the library behind it")
    with saved(context, case) as (layer, path):
        found: list[Deviation] = []
        loaded = None
        with saying(context.subject.name) as usual, suppress(SubjectRaised):
            loaded = load(context, case.base(), case, path)
        asked = _asked(layer, loaded)
        for what, damage in _damage().items():
            damaged = _damaged(path, what, damage, [[]] if damage is saved_files.truncate else asked)
            complaints = (_complaint(context, case, copy, f"a file {what}", usual) for copy in damaged)
            found += next(filter(None, complaints), [])
    other = dataclasses.replace(case.spec, variant=_unlike(context.variant).id, rank=2)
    if other.variant in context.subject.variants:
        with _saved_other(context, case, other) as path:
            what = f"a file of another method ({other.variant})"
            found += _complaint(context, case, path, what, usual)
    _tell_all(found)


def _damaged(
    path: Path,
    what: str,
    damage: Callable[[Path, list[torch.Tensor]], object],
    each: list[list[torch.Tensor]],
) -> Iterator[Path]:
    """A damaged copy of the file for each of the adapter's tensors: which is the largest depends on the sizes."""
    for number, own in enumerate(each):
        copy = saved_files.copy(path, path.parent.parent / f"{what.replace(' ', '-')}-{number}")
        damage(copy, own)
        yield copy


def _asked(layer: Layer, loaded: Layer | None) -> list[list[torch.Tensor]]:
    """The live and the canonical value of each tensor that is trained and comes back; of all, where none is.

    What is never read, which ``save_load.round_trip`` tells, is not missed either.
    """
    named = {n: [layer.raw(n).detach(), layer.value(n)] for n in layer.names}
    read = [
        n
        for n in named
        if loaded is None or n not in loaded.names or comes_back.has(loaded, n, layer.value(n))
    ]
    found = [named[n] for n in read if layer.raw(n).requires_grad]
    return found or [[t for both in named.values() for t in both]]


def _complaint(context: Context, case: Case, path: Path, what: str, usual: set[str]) -> list[Deviation]:
    """What is wrong with how this file is met, if anything is; ``usual``: what is said of a whole file, too."""
    try:
        _refused(context, case, path, what, usual)
    except Deviation as found:
        return [found]
    return []


def _tell_all(found: list[Deviation]) -> None:
    """Raise the first complaint of the gravest kind, the others in its note."""
    if found:
        lead = min(found, key=_mildness)
        more = [f"{f.witness.quantity}: {f.witness.actual}" for f in found if f is not lead]
        raise lead.with_note("; ".join(more))


def _mildness(found: Deviation) -> int:
    """Silence is worse than a warning, and that than a choice which a reference makes too."""
    if found.diagnosis is None:
        return 0
    return 2 if found.diagnosis.agrees_with else 1


BASE_REPLACED = Diagnosis(
    "save_load.base_changed",
    "a file that is refused leaves the base weight replaced by the residual",
    "who catches the exception goes on with a damaged base model",
    agrees_with="PEFT, which takes the principal part out of the base weight before it reads the file",
    documented_by=("base (weight|model) (is|was|stays) (changed|replaced)", "not atomic"),
    severity="minor",
    remedy="check names, shapes and dtypes of the whole file before the base weight is touched",
)


@contextmanager
def _saved_other(context: Context, case: Case, spec: object) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="audit-") as folder:
        path = Path(folder) / "other"
        with answering(context.subject.name, "adapt"):
            adapted = context.subject.adapt(case.base(), spec)  # type: ignore[arg-type]
        offered(context, lambda: context.subject.save(adapted, path), "save")
        yield path


def _refused(context: Context, case: Case, path: Path, what: str, usual: set[str]) -> None:
    base = case.base()
    with torch.no_grad():
        before = base(case.x).double()
    try:
        with saying(context.subject.name) as words:
            found = load(context, base, case, path)
    except SubjectRaised:
        _unchanged(context, case, before, base, what)
        return
    if not _is_another_method(context, found):
        raise _loaded(case, what, warned=bool(words - usual))


WARNED = Diagnosis(
    "save_load.damaged_and_warned",
    "a damaged file is loaded with a warning and not refused",
    "who does not read the log goes on with what could be read of the file",
    remedy="refuse the file in a sentence",
)


LOADED_WHOLE = Diagnosis(
    "save_load.damaged_and_loaded",
    "a damaged file is loaded as if it were whole",
    "a broken download would run with a random or partial adapter, and nothing says so",
    remedy="hold the names and shapes in the file against the adapter's before anything is copied, and refuse the file "
    "in a sentence",
)
REFUSED_TOO_LATE = Diagnosis(
    "save_load.refused_too_late",
    "a damaged file is refused, and the base is another one from then on",
    "who catches the exception goes on with a damaged base model",
    remedy="check the whole file before the base weight is touched",
)


def _loaded(case: Case, what: str, *, warned: bool) -> Deviation:
    """What is told of a file that was loaded and ought to have been refused."""
    quantity, told = f"loading {what}", "an adapter and a warning" if warned else "an adapter"
    known = WARNED if warned else None
    return Deviation(case, quantity, "an exception", told, diagnosis=known, otherwise=LOADED_WHOLE)


def _unchanged(context: Context, case: Case, before: torch.Tensor, base: nn.Module, what: str) -> None:
    """The base computes after the refusal what it computed before it."""
    with torch.no_grad(), answering(context.subject.name, "the base layer, after a file was refused"):
        gap = float((base(case.x).double() - before).abs().max())
    if gap > BASE_CHANGED:
        factorised = context.variant.base is not None
        quantity = f"the base's output after {what} was refused"
        diagnosis = BASE_REPLACED if factorised else None
        found = f"{gap:.3g} off"
        raise Deviation(case, quantity, "unchanged", found, diagnosis=diagnosis, otherwise=REFUSED_TOO_LATE)


def _is_another_method(context: Context, found: Layer) -> bool:
    """Whether the file decided the method (as PEFT's configuration does), and the adapter says so in its slots."""
    return not any(t.name in found.names for t in context.variant.tensors)


@check(
    "save_load",
    "major",
    title="loading runs code from the checkpoint",
    failure_mode="a checkpoint from somebody else can do anything on this machine",
    domain=FILES,
    examples=1,
    against=("paper",),
    diagnose=False,
)
def test_pickled(context: Context, case: Case) -> None:
    """A pickle in the checkpoint's place is refused, and nothing in it is run."""
    with saved(context, case) as (_, path):
        flag = saved_files.booby_trap(path)
        try:
            load(context, case.base(), case, path)
        except SubjectRaised:
            context.demand(not flag.exists(), case, "code in a pickled checkpoint", "not run", "run")
            return
        context.demand(False, case, "loading a pickle", "an exception", "an adapter")


@check(
    "save_load",
    "major",
    title="on another base the loaded adapter is not the one that was saved",
    failure_mode="a checkpoint would mean something else on a base that differs",
    domain=FILES,
    examples=EXAMPLES,
    against=("paper",),
    follows=("save_load.stored", "save_load.round_trip"),
    diagnose=False,
)
def test_other_base(context: Context, case: Case) -> None:
    """On a base with other weights the adapter's tensors are the saved ones, buffers too, or loading is refused.

    That base keeps its weight and bias. Where the adapter only makes sense with its own residual (PiSSA), it must
    bring that along or refuse.
    """
    other = case.but(seed=case.seed + 1)
    needs_base = context.variant.base is not None
    if needs_base:
        vars(other).update(bias_vector=case.bias_vector)  # the bias belongs to the base, not to an adapter
    with saved(context, case) as (layer, path):
        try:
            loaded = load(context, other.base(), case, path)
        except SubjectRaised:
            return
        bases = frozenset(t.name for t in (context.variant.base,) if t)
        comes_back.same_slots(context, case, layer, loaded, path, onto=other, but=bases)
        if not needs_base:
            with of_the_library(context.subject):
                _base_kept(context, case, layer, loaded)
        elif not _same_change(case, other, layer, loaded):
            _same_function(context, case, layer, loaded)


BASE_OVERWRITTEN = Diagnosis(
    "save_load.base_overwritten",
    "loading puts the weight or the bias of the base that the file was saved over in the place of this base's",
    "an adapter that is loaded onto a base which has been trained or mended since takes that back without a word",
    remedy="save the adapter's own tensors alone, and read no others from a file",
)


def _base_kept(context: Context, case: Case, layer: Layer, loaded: Layer) -> None:
    """Raise Deviation where the loaded layer, over another base, has the effective weight or bias of the saved one."""
    unit = rounding.roundoff(rounding.coarser(case.torch_dtype))
    own_tensors = {t.name for t in context.variant.tensors}.issuperset(layer.names)
    told = ("weight", "bias") if own_tensors else ("weight",)  # it may have trained, and saved, a bias
    for what, old, new in zip(told, effective(layer, case), effective(loaded, case), strict=False):
        if bool(old.any()) and rounding.ratio(new, old, unit * float(old.norm())) <= THRESHOLDS["formula"]:
            quantity, actual = f"the base's {what} after loading", "that of the base which the file is of"
            raise Deviation(case, quantity, "its own", actual, diagnosis=BASE_OVERWRITTEN, alone=True)


BOUND_TO_BASE = Diagnosis(
    "save_load.bound_to_base",
    "the saved adapter means something else on another base, which loading does not refuse",
    "on any base but the exact one it was made on, the residual is another and the adapter's output with it",
    documented_by=(
        r"(original|same|exact|very) (base|weights?|model)",
        "residual.{0,40}(rebuilt|recomputed|recreated|repeated) from the base",
        "(repeats|repeating|redoes) the SVD",
    ),
    severity="major",
    remedy="save what holds on any base, such as the difference to the base's own weight, or refuse another base",
)


def _same_change(case: Case, other: Case, layer: Layer, loaded: Layer) -> bool:
    """Whether the adapter changes the output of both bases alike, as a difference of factors does."""
    with torch.no_grad():
        was = layer(case.x).double() - case.base()(case.x).double()
        now = loaded(case.x).double() - other.base()(case.x).double()
    unit = ROUNDOFFS["another base"] * rounding.roundoff(rounding.coarser(case.torch_dtype))
    return (
        rounding.ratio(now, was, unit * float(was.norm() + case.x.norm() * case.weight.norm()))
        <= THRESHOLDS["formula"]
    )


def _same_function(context: Context, case: Case, layer: Layer, loaded: Layer) -> None:
    what = "output on another base (which was not refused)"
    try:
        same_output(context, case, layer, loaded, what, ROUNDOFFS["another base"])
    except Deviation as found:
        found.diagnosis = BOUND_TO_BASE
        raise


@check(
    "save_load",
    "major",
    title="checkpoints are not interchangeable with the reference's, though the subject takes its format",
    failure_mode="an adapter that is moved between the libraries would be another one",
    domain=FILES,
    examples=EXAMPLES,
    against=("peft",),
    follows=("init.principal", "init.residual"),
    diagnose=False,
)
def test_interchange(context: Context, case: Case) -> None:
    """A checkpoint that PEFT wrote, where the subject takes it, gives PEFT's output, and the reverse."""
    if context.oracle.kind != "library":
        raise OutsideDomain("only PEFT's checkpoint format is exchanged")
    told = [_told(way, context, case) for way in (_from_peft, _to_peft)]
    # What the files do counts before what is asked elsewhere, whichever way it shows.
    for kind in (Deviation, ToldElsewhere):
        for each in told:
            if isinstance(each, kind):
                raise each
    if not any(told):
        raise OutsideDomain("what the subject saves of one adapter, and loads, is no folder in PEFT's format")


def _told(
    way: Callable[[Context, Case], bool], context: Context, case: Case
) -> bool | Deviation | ToldElsewhere:
    """Whether a checkpoint was taken that way, or what is told of it."""
    try:
        return way(context, case)
    except (Deviation, ToldElsewhere) as found:
        return found


def _from_peft(context: Context, case: Case) -> bool:
    theirs = context.reference(case)
    theirs.write(case.far(dict.fromkeys(theirs.names)))
    with tempfile.TemporaryDirectory(prefix="audit-") as folder:
        path = Path(folder) / "peft"
        context.oracle.save(theirs.adapted, path)
        try:
            ours = load(context, case.base(), case, path)
        except (SubjectRaised, NotApplicable):
            return False
        passage = Passage(case, theirs, ours, context.layer(case))
        passage.judge(context, "output from a checkpoint that PEFT wrote")
    return True


def _is_in_pefts_format(path: Path) -> bool:
    """Whether a folder claims to be PEFT's: other libraries give a configuration of theirs the same name."""
    try:
        return "peft_type" in json.loads((path / "adapter_config.json").read_text())
    except (OSError, ValueError):
        return False


def _to_peft(context: Context, case: Case) -> bool:
    with saved(context, case) as (ours, path):
        if not _is_in_pefts_format(path):
            return False
        fresh = context.reference(case)
        read = on_the_audits_model(path, names_of(context.oracle, fresh), path.parent.parent / "renamed")
        passage = Passage(case, ours, _loaded_by_peft(context, case, read), fresh, asked_of_file=True)
        try:
            passage.judge(context, "output from the subject's checkpoint in PEFT")
        except Deviation as found:
            raise explained(found, passage, read, context.oracle) from None
    return True


def _loaded_by_peft(context: Context, case: Case, path: Path) -> Layer:
    try:
        return as_layer(context.oracle.load(case.base(), case.spec, path), context.oracle, "load")
    except Exception as error:
        quantity, got = "PEFT loading the subject's checkpoint", type(error).__name__
        raise Deviation(case, quantity, "an adapter", got, note=said(error)) from None


ALPHA_NOT_STORED = Diagnosis(
    "save_load.alpha_not_stored",
    "alpha is not in the file: another alpha at load gives another model and is not refused",
    "a checkpoint that is loaded with other settings than it was trained with would silently be another adapter",
    documented_by=(
        r"alpha .{0,60}not (be )?(stored|saved|in the (file|checkpoint))",
        "same (alpha|spec|config)",
    ),
    severity="major",
    remedy="write alpha and the rank into the file, and refuse settings that contradict it",
)


ALPHA_NOT_READ = Diagnosis(
    "save_load.alpha_not_read",
    "another alpha at load gives another model and is not refused, though the file depends on alpha",
    "a checkpoint that is loaded with other settings than it was trained with would silently be another adapter",
    remedy="take alpha from the file, or refuse another one in a sentence",
)


@check(
    "save_load",
    "major",
    title="another rank, alpha or option at load gives another model and is not refused",
    failure_mode="a checkpoint that is loaded with other settings than it was trained with would silently be another "
    "adapter",
    domain=FILES,
    examples=EXAMPLES,
    against=("paper",),
    follows=("save_load.round_trip", "shapes.modes"),
    diagnose=False,
)
def test_other_settings(context: Context, case: Case) -> None:
    """Loaded with another alpha, rank, λ₀ or mode, the adapter is the one in the file, or loading is refused."""
    with saved(context, case) as (layer, path):
        own = load(context, case.base(), case, path)  # not offered at all is another matter
        for name, old, new, other in _other_settings(case):
            try:
                loaded = load(context, case.base(), other, path)
            except (SubjectRaised, NotApplicable):
                continue
            what = f"output after loading with {name} = {new} in place of {old}"
            try:
                same_output(context, case, layer, loaded, what)
            except Deviation as found:
                trip, moved = moved_by(case, layer, own, loaded)
                # What another mode does is asked of the mode itself, too.
                found.alone = moved > FAR_MORE * trip and name not in context.variant.modes
                if name == "alpha" and moved:
                    found.diagnosis = _of_alpha(context, alpha_is_stored(context, case, layer))
                elif name != "alpha":
                    found.diagnosis = _of_setting(name)
                raise


def _of_setting(name: str) -> Diagnosis:
    """What is said of another setting than alpha that is taken at load."""
    return dataclasses.replace(
        ALPHA_NOT_READ,
        mistake=f"save_load.{name}_not_read",
        summary=f"another {name} at load than the file's gives another model and is not refused",
        remedy=f"take {name} from the file, or refuse another one in a sentence",
    )


def _of_alpha(context: Context, stored: bool | None) -> Diagnosis | None:
    """What is said of another alpha that is taken at load."""
    if stored is None:
        return None
    without = dataclasses.replace(ALPHA_NOT_STORED, agrees_with=context.variant.file_without_alpha)
    return ALPHA_NOT_READ if stored else without


def _other_settings(case: Case) -> Iterator[tuple[str, object, object, Case]]:
    """What of the spec is another (its name, the value in the file, the new one), and the case with it."""
    spec = case.spec
    yield "alpha", spec.alpha, 2 * spec.alpha + 1, case.but(alpha=2 * spec.alpha + 1)
    if case.variant.has_rank:
        yield "rank", spec.rank, spec.rank + 2, case.but(rank=spec.rank + 2)
    for option in case.variant.options:
        old = option.of(spec)
        new = not old if isinstance(old, bool) else next((v for v in option.values if v != old), None)
        if new is not None:
            yield option.name, old, new, dataclasses.replace(case, spec=option.put(spec, new))


@check(
    "save_load",
    "major",
    title="a loaded adapter trains other tensors than a fresh one",
    failure_mode="training that goes on from a checkpoint moves the base, or leaves part of the adapter where it is",
    domain=FILES,
    examples=EXAMPLES,
    against=("paper",),
    follows=("save_load.round_trip", "shapes.roles", "shapes.frozen_base"),
    diagnose=False,
)
def test_roles(context: Context, case: Case) -> None:
    """After load, each tensor trains or is frozen as in a fresh adapter, and so is everything outside the adapter."""
    with saved(context, case) as (_, path):
        loaded, fresh = load(context, case.base(), case, path), context.layer(case)
        for name in [n for n in fresh.names if n in loaded.names]:
            wanted, actual = _role(fresh.raw(name)), _role(loaded.raw(name))
            context.demand(actual == wanted, case, f"role of {name} after loading", wanted, actual)
        more = _trained_outside(loaded) - _trained_outside(fresh)
        context.demand(
            not more,
            case,
            "trainable parameters outside the adapter after loading",
            "none",
            ", ".join(sorted(more)),
        )


def _role(tensor: torch.Tensor) -> str:
    return "trainable" if tensor.requires_grad else "not trainable"


def _trained_outside(layer: Layer) -> set[str]:
    """The parameters outside the slots that want a gradient."""
    own = {id(layer.raw(name)) for name in layer.names}
    return {n for n, p in layer.module.named_parameters() if p.requires_grad and id(p) not in own}
