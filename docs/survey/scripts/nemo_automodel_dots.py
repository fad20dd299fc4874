# /// script
# requires-python = ">=3.11"
# dependencies = ["nemo-automodel==0.7.0", "torch==2.13.0", "numpy"]
# ///
"""The dots of a target's pattern stand for any character."""

from nemo_automodel.components._peft.module_matcher import wildcard_match

for name in ("layers.0.q", "layers.0.seq"):
    print(f"*.q selects {name}: expected {name.endswith('.q')}, got {wildcard_match('*.q', name)}")
