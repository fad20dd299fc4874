"""A subject that computes for ever when it is asked for its source."""

from tests.remote.subjects.crashes import Behaves


class Busy(Behaves):
    def source(self, variant, aspect):
        while True:
            pass
