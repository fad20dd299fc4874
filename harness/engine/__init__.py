"""One claim from question to record: the catalogue of checks, the plan, the asking, diagnosis, the preflight of a
wrapper, declared deviations, and the record that the reports are made from."""
