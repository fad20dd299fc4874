"""The survey: every shipped subject audited, and what came of it in pages to read."""
