"""A subject's source, to be quoted."""


class Sample:
    """Scales by two."""

    def forward(self, x):
        return 2 * x
