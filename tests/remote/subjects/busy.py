"""A subject that computes for ever when it is asked for its source."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[3]))

from tests.remote.subjects.crashes import Behaves


class Busy(Behaves):
    def source(self, variant, aspect):
        while True:
            pass
