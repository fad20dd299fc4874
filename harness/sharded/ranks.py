"""One job in one process, and in several over gloo: what each rank does, and how it ends."""

from __future__ import annotations

import datetime
import multiprocessing
import queue
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from harness.sharded.jobs import AFTER, BEFORE, COLUMNS, FSDP2, ROWS, Job, adapt, answers, base, move, saved
from harness.subjects.resolve import in_a_line

PATIENCE = 120  # seconds for one job on all ranks: a rank that raised leaves the others waiting


class Broke(Exception):
    """The job did not come to its end on every rank; the text is one sentence."""


def alone(job: Job) -> dict[str, Tensor]:
    """The job in this process, nothing sharded."""
    model = base()
    names = adapt(job, model)
    move(names)
    with tempfile.TemporaryDirectory() as folder:
        found = answers(model, names, slice(None), _as_is, _as_is)
        return {**found, **{f"file {n}": t for n, t in saved(job, model, Path(folder)).items()}}


def together(job: Job, ranks: int) -> tuple[dict[str, Tensor], str]:
    """The job on ``ranks`` processes: what rank 0 found, and why nothing was saved, if nothing was. Raises Broke."""
    context = multiprocessing.get_context("fork")  # everything is imported already
    with tempfile.TemporaryDirectory() as folder:
        told = context.Queue()
        workers = [context.Process(target=_rank, args=(job, r, ranks, folder, told)) for r in range(ranks)]
        for worker in workers:
            worker.start()
        try:
            unsaved = [_done(told) for _ in workers]
        finally:
            for worker in workers:
                worker.kill()
                worker.join()
        return load_file(Path(folder, "found.safetensors")), next(filter(None, unsaved), "")


def _done(told: Any) -> str:
    """Why the next rank that is done saved nothing, if it did not. Raises Broke for one that raised, or for none."""
    try:
        how, words = told.get(timeout=PATIENCE)
    except queue.Empty:
        raise Broke(f"a rank did not answer within {PATIENCE} s") from None
    if how == "raised":  # the others may be waiting for it: they are not waited for
        raise Broke(words)
    return words


def _rank(job: Job, rank: int, ranks: int, folder: str, told: Any) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of torch and safetensors, about what they call themselves
    store = dist.FileStore(str(Path(folder, "store")), ranks)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=ranks, timeout=datetime.timedelta(seconds=PATIENCE)
    )
    try:
        found, unsaved = _asked(job, rank, ranks, Path(folder))
        if rank == 0:
            save_file({n: t.contiguous() for n, t in found.items()}, Path(folder, "found.safetensors"))
        told.put(("done", unsaved))
    except BaseException as error:
        told.put(("raised", in_a_line(error)))


def _asked(job: Job, rank: int, ranks: int, folder: Path) -> tuple[dict[str, Tensor], str]:
    model = base()
    linear = {n: m.weight for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    if job.way == BEFORE:
        _parallelise(model, linear)
    names = adapt(job, model)
    move(names)
    if job.way == AFTER:
        _parallelise(model, linear)
    part = slice(None)
    if job.way == FSDP2:
        _fully_shard(model)
        part = slice(rank, None, ranks)
    spread = _rows if job.way == FSDP2 else _as_is
    found = answers(model, names, part, _whole, spread)
    try:
        file = saved(job, model, folder / f"saved{rank}")
    except Exception as error:
        return found, in_a_line(error)
    return {**found, **{f"file {n}": t for n, t in file.items()}}, ""


def _fully_shard(model: nn.Module) -> None:
    """Each block, then the rest, as torch's guide to FSDP2 does."""
    from torch.distributed.fsdp import fully_shard

    for block in model.model.layers:  # type: ignore[union-attr]
        fully_shard(block)
    fully_shard(model)


def _parallelise(model: nn.Module, linear: dict[str, Tensor]) -> None:
    """Attention and feed-forward by columns and rows: the layers that hold the weights, wherever they are now."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    where = {id(w): name for name, w in linear.items()}
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear):
            continue
        at = where.get(id(module.weight), "").rpartition(".")[2]
        if at in COLUMNS or at in ROWS:
            style = ColwiseParallel() if at in COLUMNS else RowwiseParallel()
            parallelize_module(model, mesh, {name: style})


def _as_is(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _whole(tensor: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def _rows(mine: Tensor) -> Tensor:
    """The rows of every rank, in the order of the batch: rank r has rows r, r + n, r + 2n, ..."""
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine.contiguous())
    return torch.stack(parts, 1).flatten(0, 1)
