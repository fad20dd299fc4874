"""Forty faults that an implementation of LoRA can have, in words, and what a right name of each contains."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """``right``: a regular expression of which a finding must contain a match to have told the fault by its name."""

    id: str
    said: str
    right: str


SCALE = "scale|scaling|alpha|α"
UPDATE = "forward\\.|step0\\.|scale\\.|training\\.|lifecycle\\.output"
FAULTS = (
    Fault("scale.one", "the update is not scaled", SCALE),
    Fault("scale.alpha", "the update is scaled by α, not α/r", SCALE),
    Fault("scale.root", "the update is scaled by α/√r", SCALE),
    Fault("scale.inverted", "the update is scaled by r/α", SCALE),
    Fault("scale.twice", "the call scales the update twice, merging once", SCALE),
    Fault(
        "scale.not_merged",
        "merging leaves the scale out",
        "(?=.*merge)(?=.*(scale|scaling|factor|one|alpha))",
    ),
    Fault("forward.subtracted", "the update is subtracted", "sign|subtract|negative|opposite"),
    Fault("forward.bias_lost", "the base's bias is left out", "bias"),
    Fault("forward.bias_twice", "the base's bias is added once more with the update", "bias"),
    Fault(
        "forward.update_cut",
        "no gradient reaches the factors: the update is detached",
        "gradient|graph|detach",
    ),
    Fault("forward.A_cut", "no gradient reaches A: it is detached", "gradient|graph|detach|A\\b"),
    Fault("forward.B_cut", "no gradient reaches B: it is detached", "gradient|graph|detach|B\\b"),
    Fault("forward.x_cut", "the update's input is detached: x gets the base's gradient alone", "input|x\\b"),
    Fault(
        "forward.base_cut", "the base's output is detached: x gets the update's gradient alone", "input|x\\b"
    ),
    Fault(
        "forward.nonlinear", "there is a ReLU between the factors", "linear|affine|activation|relu|non-linear"
    ),
    Fault("forward.normalised", "the update's input is divided by its norm", "normal|linear|affine|norm"),
    Fault(
        "forward.coarse", "the update's input is rounded to bfloat16", "round|precision|bfloat16|coarse|half"
    ),
    Fault(
        "forward.rows_mixed", "the mean over the batch is taken from the update's input", "row|batch|linear"
    ),
    Fault(
        "forward.stale",
        "in evaluation the A of the first evaluation is used",
        "stale|written last|old ones",
    ),
    Fault("dropout.in_place", "the dropout changes the caller's x", "input|in.place|pure|changes its"),
    Fault("dropout.output", "the dropout acts on the update, not on its input", "dropout"),
    Fault("dropout.none", "there is no dropout", "dropout"),
    Fault("dropout.in_eval", "the dropout acts in evaluation, too", "dropout|evaluation"),
    Fault("dropout.exchanged", "the dropout keeps with probability p what it should drop", "dropout"),
    Fault("dropout.base_too", "the base's input is dropped, too", "dropout"),
    Fault("dropout.not_rescaled", "what the dropout keeps is not divided by 1 − p", "dropout|1 . p|rescal"),
    Fault(
        "init.B_random", "B starts at random, so that the layer does not start at the base", "init\\.|start"
    ),
    Fault("init.both_zero", "both factors start at zero, so that nothing ever trains", "zero|trains"),
    Fault(
        "init.normal",
        "A starts from a normal law of standard deviation 0.02",
        "init\\.distribution|normal|gaussian|law",
    ),
    Fault(
        "init.bound",
        "A starts from a uniform law that is √6 times too wide",
        "init\\.distribution|bound|law|wide",
    ),
    Fault("init.exchanged", "A starts at zero and B at random", "init\\.|start|zero"),
    Fault(
        "init.same_seed",
        "every adapter sets torch's seed before it draws",
        "seed|generator|each layer|differ",
    ),
    Fault("roles.base_trained", "the base weight is trained, too", "base|frozen"),
    Fault("roles.A_frozen", "A is not trained", "A\\b|train|role|requires"),
    Fault("merge.lost", "merging gives the base", "merge"),
    Fault("merge.twice", "what is merged is added once more", "merge|folded"),
    Fault("merge.not_undone", "unmerging adds the update instead of taking it out", "unmerg|fold|base"),
    Fault("save.no_B", "B is not saved", "sav|file|load"),
    Fault("save.half", "what is saved is rounded to half precision", "sav|file|load|dtype|round"),
    Fault("dtype.output", "the output is in single precision whatever the layer's dtype", "dtype|float32"),
)
BY_ID = {fault.id: fault for fault in FAULTS}
