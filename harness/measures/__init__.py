"""How much the references disagree, measured: one file per method, one measure per entry of `oracles.disagreements`."""

from harness.measures import delora, dora, hra, ia3, lora, pissa  # noqa: F401  (they fill the table)
