"""What stands on the reference's side of a comparison: an implementation that also says what kind of one it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from oracles.implementation import Adapted, AdapterSpec, Implementation, Unsupported
from oracles.variants import VARIANTS, Form

if TYPE_CHECKING:
    from oracles.authors.recorded_case import RecordedCase

__all__ = ["Kind", "NotRecorded", "Oracle", "Standing", "as_oracle"]

# A published library, the papers' equations, the authors' own code (live or recorded), a catalogued mistake; or a
# subject that stands in an oracle's place, so that two implementations are compared.
Kind = Literal["library", "equation", "author", "mistake", "subject"]


class NotRecorded(Unsupported):
    """A recording cannot answer this; the claim stays unverified."""


class Oracle(Implementation):
    """A reference.

    ``forms``: variant -> the form of its equation whose conditioning sets rounding noise. ``cases``: the only cases
    it can be asked on, where it answers from a recording; None where any case will do.
    """

    kind: Kind

    @property
    def forms(self) -> Mapping[str, Form]:
        """The equations themselves, unless this oracle computes another form."""
        return {id_: variant.form for id_, variant in VARIANTS.items()}

    @property
    def cases(self) -> Sequence[RecordedCase] | None:
        """The recorded cases, or None."""
        return None

    def evaluator(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """The adapter on a base of any dtype, float64 too, for parameters that are written into it afterwards."""
        return self.adapt(base, spec)

    def hidden(self, adapted: Adapted) -> Mapping[str, Tensor]:
        """Tensors that the output depends on and that have no slot, live."""
        return {}

    def offers(self, mode: str | None) -> bool:
        """Whether it has that mode of its variants (None: the plain form)."""
        return True


class Standing(Oracle):
    """A subject in the oracle's place."""

    kind: Kind = "subject"

    def __init__(self, subject: Implementation) -> None:
        self.subject = subject
        self.name, self.version, self.variants = subject.name, subject.version, subject.variants
        self.adapt_model = subject.adapt_model  # type: ignore[method-assign]
        self.save, self.load = subject.save, subject.load  # type: ignore[method-assign]
        self.merge, self.detach = subject.merge, subject.detach  # type: ignore[method-assign]
        self.nearest = subject.nearest  # type: ignore[method-assign]

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """The subject's."""
        return self.subject.adapt(base, spec)


def as_oracle(implementation: Implementation) -> Oracle:
    """``implementation`` itself where it is an oracle, else a subject standing in one's place."""
    return implementation if isinstance(implementation, Oracle) else Standing(implementation)
