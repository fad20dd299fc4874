"""loralib's layer within a model: the model is put into evaluation, and with it the layer."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

from torch import nn

from oracles.implementation import Adapted, AdapterSpec

# The subject of the survey, which has the library's own name, is found by its path.
FILE = Path(__file__).parents[3] / "harness" / "subjects" / "loralib.py"
found = importlib.util.spec_from_file_location("loralib_of_the_survey", FILE)
assert found is not None
assert found.loader is not None
of_the_survey: Any = importlib.util.module_from_spec(found)
found.loader.exec_module(of_the_survey)


class InModel(of_the_survey.Loralib):  # type: ignore[misc]
    """What its README says: ``eval()`` of a model merges the weights of its layers."""

    layers = frozenset({"linear"})

    def adapt(self, base: nn.Linear, spec: AdapterSpec) -> Adapted:
        """The layer, put into the base's mode with the model that it belongs to."""
        adapted: Adapted = super().adapt(base, spec)
        _model(adapted.module).train(base.training)
        return adapted

    def merge(self, adapted: Adapted) -> nn.Linear:
        """The weight of the layer once a model of it has been evaluated, in a plain layer."""
        folded = _model(copy.deepcopy(adapted.module)).eval()[0]
        plain = nn.Linear(folded.in_features, folded.out_features, folded.bias is not None)
        plain.weight, plain.bias = folded.weight, folded.bias
        return plain


def _model(layer: nn.Module) -> Any:
    """A model of one layer; early releases' layers return nothing from ``train``, which a model does not mind."""
    return nn.Sequential(layer)
