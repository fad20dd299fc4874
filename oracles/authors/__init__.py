"""The paper authors' own code as oracles: one short module per implementation, run from the files that
`python -m refs sync` brought (loralib is a package), with nothing of theirs installed; and the recordings of
what it computes, which stand in where it is not synced. `available(variant)` says which there are."""

from oracles.authors.availability import Author, Provenance, available, cases
from oracles.authors.recorded_case import RecordedCase

__all__ = ["Author", "Provenance", "RecordedCase", "available", "cases"]
