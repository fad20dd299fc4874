"""`python -m adapter_conformance`: the command `adapter-conformance`."""

from __future__ import annotations

import sys

from adapter_conformance.command import main

sys.exit(main())
