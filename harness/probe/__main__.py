"""`python -m harness.probe`: the subject beside PEFT on a pretrained model, or on a folder larger than memory."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable

from harness.probe import memory, pretrained, stream
from harness.probe.comparison import DTYPES, compare
from harness.probe.page import html
from harness.probe.sections import MIB, Findings, Table, markdown, placed, tables
from harness.probe.spectrum import parts
from harness.subjects import resolve
from oracles.implementation import AdapterSpec, Implementation
from oracles.peft import Peft
from oracles.variants import VARIANTS

PAGE = Path("reports/out/probe.html")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m harness.probe", description=__doc__)
    add = made.add_argument
    add("--model", metavar="PATH_OR_ID", help="folder, .gguf file or hub id (default: the packaged SmolLM2)")
    add("--stream", metavar="DIR", type=Path, help="audit a folder of safetensors weight by weight instead")
    add("--targets", metavar="T,...", help="with --stream: endings of layer names (default: PEFT's table)")
    add("--subject", default="lora_lite", metavar="REF", help="as pytest's --subject")
    add("--variants", metavar="V,...", help=f"of {', '.join(VARIANTS)} (default: all)")
    add("--steps", type=int, default=20, help="training steps (default 20)")
    add("--rank", type=int, default=8, help="rank, and alpha with it (default 8)")
    add("--report", metavar="PATH", type=Path, help="put the section into this markdown file")
    add("--html", metavar="PATH", type=Path, default=PAGE, help=f"the page to write (default {PAGE})")
    add("--threads", type=int, default=os.cpu_count() or 1, help="torch's threads (default: all cores)")
    return made


def main(argv: list[str] | None = None) -> int:
    """Measure, show, write; 2 with one sentence on stderr where something asked for cannot be had."""
    options = parser().parse_args(argv)
    torch.set_num_threads(options.threads)
    console = Console()
    try:
        subject = resolve.resolve(options.subject).implementation
        specs = specs_of(options.variants, options.rank, subject)
        with memory.cost() as whole, progress(console) as bars:
            found = (_stream if options.stream else _model)(options, subject, specs, bars)
    except (pretrained.NoModel, stream.NoWeights, resolve.BadSubject, BadOption) as error:
        print(f"probe: {error}", file=sys.stderr)
        return 2
    found.whole = whole
    took = f"{whole.seconds:.0f} s ({whole.processor:.0f} s of processor time)"
    found.about.append(f"The whole run took {took} and at most {whole.peak / MIB:.0f} MiB.")
    for table in tables(found):
        console.print(rich_table(table))
    console.print(*found.about)
    written(found, options, console)
    return 0


class BadOption(Exception):
    """An option cannot be used; the text is one sentence."""


def specs_of(given: str | None, rank: int, subject: Implementation) -> list[AdapterSpec]:
    """One spec per variant. Raises BadOption for an unknown one."""
    asked = [v.strip() for v in given.split(",")] if given else [v for v in VARIANTS if v in subject.variants]
    unknown = [v for v in asked if v not in VARIANTS]
    if unknown:
        raise BadOption(f"--variants {given!r}: expected some of {', '.join(VARIANTS)}")
    return [AdapterSpec(v, rank=rank, alpha=float(rank)) for v in asked]


def progress(console: Console) -> Progress:
    """The bars: what is going on, how far, how long."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


def command(options: argparse.Namespace) -> str:
    """The line that was typed, without the machine's paths."""
    words = ["python -m harness.probe"]
    if options.stream:
        words += ["--stream DIR", *([f"--targets {options.targets}"] if options.targets else [])]
    elif options.model:
        words.append(f"--model {shlex.quote(Path(options.model).name)}")
    words += [f"--variants {options.variants}"] if options.variants else []
    words += [f"--subject {options.subject}"] if options.subject != "lora_lite" else []
    return " ".join([*words, *([] if options.stream else [f"--steps {options.steps}"])])


def machine(options: argparse.Namespace) -> str:
    """Where it was measured, in a sentence."""
    versions = (
        f"torch {torch.__version__.split('+')[0]}, PEFT {Peft.version}, Python {platform.python_version()}"
    )
    return f"{options.threads} threads; {versions}."


def _model(
    options: argparse.Namespace, subject: Implementation, specs: list[AdapterSpec], bars: Progress
) -> Findings:
    loading = bars.add_task("loading the model", total=1)
    given = pretrained.load(options.model)
    bars.advance(loading)
    per_variant = 2 * (len(DTYPES) + options.steps)
    found = Findings(
        command(options), [f"{given.name}, {given.parameters / 1e6:.0f} M parameters.", machine(options)]
    )
    for spec in specs:
        task = bars.add_task(spec.variant, total=per_variant)
        tick = _tick(bars, task, spec.variant)
        found.compared.append(compare(subject, Peft(), given, spec, options.steps, tick))
        bars.update(task, completed=per_variant, description=spec.variant)
    factorised = next((c for c in found.compared if VARIANTS[c.spec.variant].factorised), None)
    if factorised is not None and (names := list(factorised.peft.by_layer.get("bf16", {}))):
        task = bars.add_task(f"{VARIANTS[factorised.spec.variant].title}'s parts", total=1)
        found.parts, found.sweeps = parts(given, names, factorised.spec)
        bars.advance(task)
    return found


def _tick(bars: Progress, task: object, name: str) -> Callable[[str], None]:
    def tick(what: str) -> None:
        bars.update(task, advance=1, description=f"{name}: {what}")  # type: ignore[arg-type]

    return tick


def _stream(
    options: argparse.Namespace, subject: Implementation, specs: list[AdapterSpec], bars: Progress
) -> Findings:
    targets = options.targets.split(",") if options.targets else None
    asked = stream.plan(options.stream, specs, targets)
    task = bars.add_task("weights", total=len(asked))

    def done(place: stream.Place) -> None:
        bars.update(task, advance=1, description=place.layer)

    streamed = stream.audit(asked, {subject.name: subject, "PEFT": Peft()}, done)
    size = sum(f.stat().st_size for f in options.stream.glob("*.safetensors")) / 1e9
    about = [f"{size:.1f} GB of safetensors, {len(asked)} weights adapted.", machine(options)]
    return Findings(command(options), about, streamed=list(streamed.values()))


def rich_table(table: Table) -> RichTable:
    """A table for the terminal."""
    shown = RichTable(
        title=table.title, caption=table.note or None, title_justify="left", caption_justify="left"
    )
    for head in table.heads:
        shown.add_column(head, overflow="fold")
    for row in table.rows:
        shown.add_row(*(cell.replace("[", "\\[") for cell in row))
    return shown


def written(found: Findings, options: argparse.Namespace, console: Console) -> None:
    """The page, and the section where it was asked for."""
    options.html.parent.mkdir(parents=True, exist_ok=True)
    options.html.write_text(html(found, options.rank), encoding="utf-8")
    console.print(f"page: {options.html}")
    if options.report:
        before = options.report.read_text(encoding="utf-8") if options.report.exists() else ""
        options.report.write_text(placed(before, markdown(found)), encoding="utf-8")
        console.print(f"section: {options.report}")


if __name__ == "__main__":
    sys.exit(main())
