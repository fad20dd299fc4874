"""The installed PEFT itself as the subject, judged against the papers and the authors."""

from oracles.peft import Peft

__all__ = ["Peft"]
