"""`python -m harness.checkpoints verify-merge | inspect | vectors`: adapter files and merged checkpoints."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from harness.checkpoints import adapter_table, merge_report, vectors_run
from oracles.vectors.unreadable import Unreadable


def main(argv: Sequence[str] | None = None) -> int:
    """Exit 2 for what cannot be read; each command says what its other codes mean."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.checkpoints", description=(__doc__ or "").splitlines()[0]
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for part in (merge_report, adapter_table, vectors_run):
        part.add_command(commands)
    options = parser.parse_args(argv)
    try:
        return int(options.run(options))
    except Unreadable as why:
        print(f"{options.command_name}: {why}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
