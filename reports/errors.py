"""The named errors of `reports`; each carries one sentence that can be shown as it is."""

from __future__ import annotations


class ReportsError(Exception):
    """What every error of this folder is."""


class UnreadableFile(ReportsError):
    """A file is not there, not a regular file, or may not be read."""


class Oversized(ReportsError):
    """A file is larger than anything this program writes."""


class Malformed(ReportsError):
    """A file is not what its name promises."""


class OtherSchema(ReportsError):
    """An `audit.json` of a schema version that this program does not know."""


class Incomplete(ReportsError):
    """An `audit.json` without `complete`: the run that wrote it did not reach its end."""


class ShardOnly(ReportsError):
    """An `audit.json` of one shard: it must be merged with its siblings before it says anything."""


class MergeRefused(ReportsError):
    """Shards that do not belong together, overlap, or leave claims out."""
