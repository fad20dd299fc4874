"""The checks on numbers on an accelerator, in the precisions that training uses there (`make gpu`)."""
