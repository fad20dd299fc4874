"""Cases that follow from the claim and the seed alone, whatever else is loaded.

Hypothesis draws one number in twenty from the constants in the source of every local module that happens to be
imported: the audit's own, a library's in a checkout, a subject's file. The same claim would then meet other cases in
process than in a worker, and others in a run that has loaded more.
"""

from __future__ import annotations

from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants

__all__ = ["ignore_local_constants"]

NONE = Constants()


def ignore_local_constants() -> None:
    """Draw from Hypothesis' own list of awkward numbers, never from local source. Raises AttributeError where
    Hypothesis has changed so that this has no effect any more."""
    if not hasattr(providers.HypothesisProvider, "_local_constants"):
        raise AttributeError("Hypothesis has no _local_constants: its cases may depend on what is imported")
    providers.HypothesisProvider._local_constants = property(lambda self: NONE)  # type: ignore[assignment]
