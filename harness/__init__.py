"""What is asked: one module `test_*.py` per property, and the rooms that they are asked from.

`cases` draws what a check is tried on, `compare` hands it subject and oracle on one case, `engine` takes a claim from
question to record, `plugin` is pytest's side, `subjects` what can be audited, `probe` the same on pretrained weights.
"""
