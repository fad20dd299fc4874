"""The probe's numbers as tables: one set of rows for the terminal, for markdown and for HTML."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from harness.probe.comparison import DTYPES, Compared, Gap, Side
from harness.probe.memory import Cost
from harness.probe.spectrum import Part, Sweep
from harness.probe.stream import Streamed
from oracles.variants import VARIANTS

MIB = 2**20
BEGIN, END = "<!-- probe: begin -->", "<!-- probe: end -->"


@dataclass
class Findings:
    """Everything one run of the probe found."""

    command: str
    about: list[str]  # the model and the machine, in sentences
    compared: list[Compared] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    sweeps: list[Sweep] = field(default_factory=list)
    streamed: list[Streamed] = field(default_factory=list)
    whole: Cost = field(default_factory=Cost)


@dataclass(frozen=True)
class Table:
    """Title, heads, rows, and a sentence on how to read it."""

    title: str
    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""


def tables(found: Findings) -> list[Table]:
    """The tables that have rows."""
    built = [
        _identity(found.compared),
        _layers(found.compared),
        _parts(found.parts, found.compared),
        *(_sweep(s) for s in found.sweeps),
        _training(found.compared),
        _gradients(found.compared),
        _costs(found.compared),
        _streamed(found.streamed),
        _notes(found),
    ]
    return [t for t in built if t.rows]


def _sides(compared: Iterable[Compared]) -> Iterable[tuple[str, Side]]:
    for each in compared:
        yield each.spec.variant, each.subject
        yield each.spec.variant, each.peft


def number(value: float) -> str:
    """Three digits at most; an exact zero is 0."""
    return "0" if value == 0 else f"{value:.2g}"


def _gap(found: Gap | None) -> str:
    return "–" if found is None else f"{number(found.largest)} ({number(found.relative)})"


def _identity(compared: list[Compared]) -> Table:
    rows = [(v, s.who, *(_gap(s.logits.get(d)) for d in DTYPES)) for v, s in _sides(compared) if s.logits]
    note = "Largest |Δ logit| against the base in the same dtype, and in brackets ‖Δ‖ / ‖logits‖."
    return Table("The fresh adapter at the logits", ("variant", "", *DTYPES), rows, note)


def _layers(compared: list[Compared]) -> Table:
    rows = []
    for variant, side in _sides(compared):
        cells = [_spread(side.by_layer.get(d)) for d in DTYPES]
        if side.by_layer:
            rows.append((variant, side.who, *cells))
    note = "Median and largest ‖Δy‖ / ‖y‖ over the adapted layers, each given the base's own input."
    return Table("The fresh adapter layer by layer", ("variant", "", *DTYPES), rows, note)


def _spread(values: dict[str, float] | None) -> str:
    if not values:
        return "–"
    return f"{number(statistics.median(values.values()))} … {number(max(values.values()))}"


def _parts(parts: list[Part], compared: list[Compared]) -> Table:
    rows = [(p.source, number(p.gap.largest), number(p.gap.relative)) for p in parts]
    for variant, side in _sides(compared):
        if parts and VARIANTS[variant].factorised and (found := side.logits.get("bf16")):
            rows.append(
                (f"all together: {side.who} in bfloat16", number(found.largest), number(found.relative))
            )
    heads = ("source", "largest |Δ logit|", "‖Δ‖ / ‖logits‖")
    note = (
        "Each source alone. The weights' share is computed in float32 arithmetic; the arithmetic's share is the base "
        "without any adapter, against the same weights in float32."
    )
    return Table("Where PiSSA's error in bfloat16 comes from", heads, rows, note)


def _sweep(sweep: Sweep) -> Table:
    rows = [
        (str(r), f"{k:.1%}", number(wide), number(narrow), f"{narrow / wide:.1f}" if wide else "–")
        for r, k, wide, narrow in zip(sweep.ranks, sweep.kept, sweep.wide, sweep.narrow, strict=True)
    ]
    shape = " × ".join(map(str, sweep.shape))
    heads = ("rank", "‖W‖² kept", "factors fp32", "factors bf16", "ratio")
    note = "‖W_res + s B A − W‖ / ‖W‖ with the residual in bfloat16."
    return Table(f"PiSSA's weight error against rank: {sweep.layer} ({shape})", heads, rows, note)


def _training(compared: list[Compared]) -> Table:
    rows = []
    for each in compared:
        ours, theirs = each.subject.losses, each.peft.losses
        if ours and theirs:
            ends = (f"{ours[0]:.4f}", f"{ours[-1]:.4f}", f"{theirs[0]:.4f}", f"{theirs[-1]:.4f}")
            rows.append((each.spec.variant, str(len(ours)), *ends, number(each.losses_apart)))
    heads = ("variant", "steps", "first", "last", "PEFT first", "PEFT last", "largest difference")
    note = "AdamW, learning rate 1e-3, the same batches, PEFT's starting values carried over."
    return Table("Loss", heads, rows, note)


def _gradients(compared: list[Compared]) -> Table:
    rows = []
    for each in compared:
        for name, size in each.subject.gradients.items():
            other = each.peft.gradients.get(name)
            off = "–" if not other else number(abs(size - other) / other)
            rows.append(
                (each.spec.variant, name, f"{size:.4g}", "–" if other is None else f"{other:.4g}", off)
            )
    heads = ("variant", "tensor", "norm", "PEFT's norm", "relative difference")
    return Table("Gradients of step 0", heads, rows, "Frobenius norm over all adapted layers.")


def _costs(compared: list[Compared]) -> Table:
    rows = [
        (
            variant, side.who, str(side.layers), f"{side.trainable:,}", f"{side.attach.seconds:.1f}",
            f"{side.steps.seconds:.1f}", f"{side.steps.peak / MIB:.0f}", f"{side.bytes_saved / 1024:.0f}",
            _gap(side.reloaded),
        )
        for variant, side in _sides(compared) if side.layers
    ]  # fmt: skip
    heads = (
        "variant",
        "",
        "layers",
        "trainable",
        "attach s",
        "steps s",
        "peak MiB",
        "saved KiB",
        "after loading",
    )
    note = (
        "Attaching includes copying the model; for HRA, blocks are recomputed in the backward pass. "
        "The last column: Δ logits of the adapter saved and loaded again."
    )
    return Table("Time, memory, files", heads, rows, note)


def _streamed(streamed: list[Streamed]) -> Table:
    rows = [
        (each.variant, who, str(len(gaps)), number(statistics.median(gaps)), number(max(gaps)))
        for each in streamed for who, gaps in each.gaps.items()
    ]  # fmt: skip
    heads = ("variant", "", "layers", "median ‖Δy‖ / ‖y‖", "largest")
    return Table(
        "Layer by layer, streamed", heads, rows, "Each weight read, adapted alone, measured and released."
    )


def _notes(found: Findings) -> Table:
    rows = [(v, s.who, s.note) for v, s in _sides(found.compared) if s.note]
    rows += [(s.variant, who, text) for s in found.streamed for who, text in s.notes.items()]
    return Table("What was refused", ("variant", "", "in its words"), rows)


def markdown(found: Findings) -> str:
    """The section between its two marks."""
    lines = [
        BEGIN,
        "## Probe on pretrained weights",
        "",
        f"    {found.command}",
        "",
        " ".join(found.about),
        "",
    ]
    for table in tables(found):
        lines += [f"### {table.title}", "", *([table.note, ""] if table.note else [])]
        lines += [_row(table.heads), _row(("---",) * len(table.heads)), *map(_row, table.rows), ""]
    return "\n".join([*lines, END, ""])


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"


def placed(document: str, section: str) -> str:
    """``document`` with the probe's section replaced, or added at the end."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if begin and end:
        return before + section.rstrip("\n") + after
    return document.rstrip("\n") + ("\n\n" if document.strip() else "") + section
