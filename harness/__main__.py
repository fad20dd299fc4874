"""`python -m harness bisect ...`: which release changed a claim's answer."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the named command."""
    if sys.argv[1:2] != ["bisect"]:
        print("usage: python -m harness bisect --subject peft --good A --bad B CLAIM", file=sys.stderr)
        return 4
    from harness.bisect import main as bisect

    return bisect(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
