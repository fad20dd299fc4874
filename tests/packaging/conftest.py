"""The wheel's package, unbuilt: it finds the audit in the checkout."""

from __future__ import annotations

import sys

from tests.packaging.toy import PACKAGE

if str(PACKAGE) not in sys.path:
    sys.path.append(str(PACKAGE))
