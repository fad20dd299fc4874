"""Claims become findings, findings become verdicts, and both are held against the prior review."""
