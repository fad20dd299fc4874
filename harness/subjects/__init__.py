"""The subjects that ship with the audit, one file each, and how `--subject` finds those that do not.

A file here holds one Implementation subclass; its declared deviations lie beside it as a TOML of the same name."""
