"""The truth, runnable: the subject interface, the variants' records, the equations in float64, live PEFT, the
authors' code, and the catalogue of known mistakes. Imports `refs`; never `harness`, `reports` or `tests`."""
