"""All vectors, topic by topic; every one names the public fault it is for and the readings that it must tell apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from oracles.vectors import file_vectors, refused
from oracles.vectors.draft import Draft
from oracles.vectors.methods import modules

# In the corpus' order: first what is shown for any method, then each method's own vectors.
TOPICS = (
    "scale",
    "patterns",
    "biases",
    "conv1d",
    "embedding",
    "conv2d",
    "tied",
    "other ties",
    "saved",
    "layers",
    "targets",
    "prefixes",
    "fused",
    "fused patterns",
    "experts",
    "dtypes",
    "shards",
    "direction",
    "residual",
    "equation",
    "refused tensors",
    "refused",
    "refused files",
)


def drafts() -> Iterator[Draft]:
    """All vectors, in the corpus' order; raises ValueError for a topic that is none."""
    parts: list[Mapping[str, Callable[[], Iterator[Draft]]]] = [file_vectors.VECTORS, refused.VECTORS]
    parts += [module.VECTORS for module in modules()]
    unknown = {topic for part in parts for topic in part} - set(TOPICS)
    if unknown:
        raise ValueError(f"there is no topic {', '.join(sorted(unknown))}")
    for topic in TOPICS:
        for part in parts:
            if topic in part:
                yield from part[topic]()
