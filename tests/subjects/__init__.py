"""Subjects for the audit's own tests: right ones in many styles, wrong ones, hostile ones.

The right ones are written from the papers and `REFERENCES.md`, without a look at `oracles/` or `lora_lite`.
"""
