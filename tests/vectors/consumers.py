"""By hand: what the installed PEFT, transformers' own load_adapter and lora_lite make of the vectors, as a table.

    python -m tests.vectors.consumers

Each consumer is given the base in float32. "logits": the adapted model's logits are the vector's; "merged": every
tensor after merging is; a folder that has to be refused counts as right when loading it raises.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from harness.checkpoints.vectors_run import judged
from harness.subjects.lora_lite import LoraLite
from oracles.implementation import Unsupported
from oracles.peft import Peft
from oracles.vectors.chain import ChainModel, run
from oracles.vectors.corpus import Vector, vectors

RIGHT, NOT_OFFERED, REFUSED, TAKEN = "right", "not offered", "refused", "taken without an error"
Ask = Callable[[Vector], str]


class ChainConfig(PretrainedConfig):
    """Of a base of the corpus; transformers wants one."""

    model_type = "vector_chain"


class TransformersChain(PreTrainedModel):
    """A base of the corpus as a transformers model: the same submodules under the same names."""

    config_class = ChainConfig

    def __init__(self, chain: ChainModel) -> None:
        super().__init__(ChainConfig())
        self.chain = chain.chain
        for name, child in chain.named_children():
            self.add_module(name, child)

    forward = ChainModel.forward


def _logits(vector: Vector, model: nn.Module) -> str:
    """Right, or the sentence of the wrong reading whose logits these are."""
    for i, x in enumerate(vector.inputs):
        with torch.no_grad():
            found = model(x.float() if x.is_floating_point() else x).double()
        if not _near(found, vector.numbers[f"logits/{i}"]):
            return _like(vector, i, found)
    return RIGHT


def _near(found: Tensor, exact: Tensor) -> bool:
    return bool(torch.linalg.vector_norm(found - exact) <= 1e-4 * torch.linalg.vector_norm(exact))


def _like(vector: Vector, i: int, found: Tensor) -> str:
    for wrong in vector.about["wrong_readings"]:
        if _near(found, run(vector.model, vector.reading(wrong["id"]), vector.inputs[i])):
            return str(wrong["sentence"])
    return "equals no known reading"


def _asked(load: Callable[[Vector], nn.Module], look: Callable[[Vector, nn.Module], str]) -> Ask:
    def ask(vector: Vector) -> str:
        expect = vector.about["expect"]
        try:
            model = load(vector)
        except Unsupported:
            return NOT_OFFERED
        except Exception as error:
            said = str(error).splitlines()[0][:60]
            return f"{REFUSED}: {type(error).__name__} {said}" if expect == "apply" else RIGHT
        try:
            return TAKEN if expect == "refuse" else look(vector, model)
        except Unsupported:
            return NOT_OFFERED

    return ask


def _subject(subject: Peft | LoraLite) -> Callable[[Vector], nn.Module]:
    def load(vector: Vector) -> nn.Module:
        model = vector.build(torch.float32)
        subject.load_peft(model, vector.adapter)
        return model

    return load


def _merged(subject: Peft | LoraLite) -> Callable[[Vector, nn.Module], str]:
    def look(vector: Vector, model: nn.Module) -> str:
        found = judged(vector, dict(subject.merge_model(model).state_dict()))
        return RIGHT if found.verdict == RIGHT else found.reason.partition(";")[0]

    return look


def _transformers(vector: Vector) -> nn.Module:
    model = TransformersChain(vector.build(torch.float32))
    model.load_adapter(str(vector.adapter))
    return model.eval()


CONSUMERS: dict[str, Ask] = {
    "PEFT, logits": _asked(_subject(Peft()), _logits),
    "PEFT, merged": _asked(_subject(Peft()), _merged(Peft())),
    "transformers load_adapter, logits": _asked(_transformers, _logits),
    "lora_lite, logits": _asked(_subject(LoraLite()), _logits),
    "lora_lite, merged": _asked(_subject(LoraLite()), _merged(LoraLite())),
}


def kind(vector: Vector) -> str:
    """The row of a vector: what it is for, apart by whether it has to be refused."""
    expect = {"refuse": "has to be refused", "apply_or_refuse": "unusual names: applied or refused"}
    return expect.get(vector.about["expect"], str(vector.about["source"]))


def answers() -> Iterator[tuple[Vector, str, str]]:
    """(vector, consumer, what it made of it)."""
    for vector in vectors():
        for consumer, ask in CONSUMERS.items():
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield vector, consumer, ask(vector)


def main() -> None:
    logging.disable(logging.WARNING)
    rows: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    wrong: dict[str, list[str]] = defaultdict(list)
    for vector, consumer, answer in answers():
        rows[kind(vector)][consumer].append(answer)
        if answer not in (RIGHT, NOT_OFFERED):
            wrong[f"{consumer}: {answer}"].append(vector.id)
    print("| vectors | number | " + " | ".join(CONSUMERS) + " |")
    print("|---|---|" + "---|" * len(CONSUMERS))
    for name, row in rows.items():
        cells = [_cell(row[consumer]) for consumer in CONSUMERS]
        print(f"| {name} | {len(row[next(iter(CONSUMERS))])} | " + " | ".join(cells) + " |")
    print()
    for what, ids in wrong.items():
        print(f"- {what}: {', '.join(f'`{i}`' for i in ids)}")


def _cell(found: list[str]) -> str:
    offered = [a for a in found if a != NOT_OFFERED]
    if not offered:
        return NOT_OFFERED
    left = f" ({len(found) - len(offered)} not offered)" if len(offered) < len(found) else ""
    return f"{sum(a == RIGHT for a in offered)} of {len(offered)}{left}"


if __name__ == "__main__":
    main()
