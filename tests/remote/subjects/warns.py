"""A subject that warns and logs, and makes torch warn."""

import logging
import sys
import warnings
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[3]))

from tests.remote.subjects.crashes import Behaves


class Warns(Behaves):
    def adapt(self, base, spec):
        warnings.warn(f"rank {spec.rank} is small", stacklevel=2)
        torch.nn.init.kaiming_uniform_(torch.empty(0, 3))
        logging.getLogger("warns").warning("so it says")
        return super().adapt(base, spec)
