"""Initialisation: where an adapter starts, and that attaching it leaves the base alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import scipy
import torch
from torch import Tensor
from torch.nn.utils import parametrize

from harness.cases.layer_cases import Case, Domain
from harness.compare import rounding
from harness.compare.context import Context, State, plain
from harness.compare.layer import Layer, adapt
from harness.compare.outcome import Deviation, NoSlot, OutsideDomain, ToldElsewhere
from harness.compare.probing import drops_over_evaluation, mode_is_ignored
from harness.compare.thresholds import (
    FALSE_ALARM,
    GAUSSIAN_SIGMA,
    NEAR_PRINCIPAL,
    REACHED,
    SINGULAR,
    STANDARD_ERRORS,
    SUPPORT,
    UNIT_VECTORS,
)
from harness.engine.checks import check
from oracles.seeding import seed_torch
from oracles.variants import Canonical, Variant
from oracles.variants.record import Factorised
from reports.model import Diagnosis

LARGE = Domain(dtypes=("float32",), sizes=(24, 40), ranks=(4, 8), batches=((2,),))
TALL_ENOUGH = Domain(dtypes=("float32",), sizes=(6, 12), ranks=(1, 4))
DRAWS = 40
WEIGHTS = 8  # on which what a factorisation takes out of a weight is averaged


def _random(variant: Variant) -> list[Canonical]:
    """What is drawn from torch's own generator."""
    return [t for t in variant.tensors if t.uniform and t.drawn_from == "global"]


def _keyed(variant: Variant) -> list[Canonical]:
    """What is drawn from a generator that a key in the spec seeds."""
    return [t for t in variant.tensors if t.uniform and t.drawn_from == "spec"]


def _has_random(variant: Variant) -> bool:
    return bool(_random(variant))


def _is_factorised(variant: Variant) -> bool:
    return variant.factorised is not None


@check(
    "init",
    "critical",
    title="the adapted layer does not start as the base layer",
    failure_mode="the model is another one before the first step",
    follows=(
        "init.deterministic",
        "init.pairs",
        "init.residual",
        "init.principal",
        "forward.at_init",
        "forward.random_parameters",
    ),
)
def test_identity(context: Context, case: Case) -> None:
    """At step 0 the adapted layer equals the base layer, where the reference promises it."""
    _identity(context, case)


def _identity(context: Context, case: Case) -> None:
    if not context.variant.starts_at_identity(case.spec):
        raise OutsideDomain("the reference does not start at the identity in this mode")
    ours = context.layer(case)
    base = plain(case.base(torch.float64), case.x.double())
    actual = rounding.observe(ours, case)["output"]
    context.judge(case, "output at step 0", actual, base, rounding.identity_noise(case, base))


def _deterministic(context: Context, case: Case) -> None:
    ours, theirs = context.layer(case), context.evaluator(case)
    wrong: list[Deviation] = []
    for tensor in context.variant.tensors:
        if tensor.exact and tensor.name in ours.names and tensor.name in theirs.names:
            actual, exact = ours.value(tensor.name), theirs.value(tensor.name)
            if actual.shape != exact.shape:  # a finding of its own
                # A mistake in the shape itself explains only who makes it, too.
                own = tuple(exact.shape) != tensor.shape(case.out_features, case.in_features, case.spec)
                context.demand(not own, case, f"shape of {tensor.name}", exact.shape, actual.shape)
                continue
            noise = value_noise(ours, tensor, exact, case)
            try:
                context.judge(case, f"initial {tensor.name}", actual, exact, noise, "value")
            except Deviation as found:
                wrong.append(_told_how(context, found))
    wrong = [
        found for found in wrong if not _random_in_both(context, case, found.witness.quantity.split()[-1])
    ]
    if wrong:
        raise wrong[0].with_note("; ".join(f"{w.witness.quantity} is {w.witness.actual}" for w in wrong[1:]))


def _told_how(context: Context, found: Deviation) -> Deviation:
    """The deviation with what to say where no mistake explains it: which tensor, and what is seen of its start."""
    name, case = found.witness.quantity.split()[-1], found.case
    if case is None:
        return found
    large = case.but(in_features=max(case.in_features, 6), out_features=max(case.out_features, 5))
    first, second = _two_draws(large, context.layer, name)
    how = ""
    if not torch.equal(first, second):
        how = ": it is random over one base"
    elif first.numel() > 1 and bool((first == first.flatten()[0]).all()):
        how = f": it is {float(first.flatten()[0]):g} everywhere"
    found.otherwise = Diagnosis(
        f"init.start_of_{name}",
        f"{name} does not start at the reference's value{how}",
        "the first steps of training are others than the reference's",
    )
    return found


def _two_draws(case: Case, make: Callable[[Case], Layer], name: str) -> tuple[Tensor, Tensor]:
    """A tensor's start over one weight and bias, drawn from two seeds."""
    other = case.but(seed=case.seed + 1)
    vars(other).update(weight=case.weight, bias_vector=case.bias_vector)
    return make(case).value(name), make(other).value(name)


def _random_in_both(context: Context, case: Case, name: str) -> bool:
    """Whether oracle (a reference's other form) and subject both draw a tensor that the reference of record sets."""
    return all(not torch.equal(*_two_draws(case, make, name)) for make in (context.evaluator, context.layer))


@check(
    "init",
    "critical",
    title="a tensor does not start at the reference's value",
    failure_mode="the first steps of training are others than the reference's",
    applies=lambda variant: any(t.exact for t in variant.tensors),
)
def test_deterministic(context: Context, case: Case) -> None:
    """Tensors that the reference sets start at its value: B = 0, l = 1, m = ‖W‖_row, λ = λ₀, w_norm = ‖W‖_col."""
    _deterministic(context, case)


def value_noise(ours: Layer, tensor: Canonical, exact: Tensor, case: Case) -> float:
    """Rounding of a norm over ``n`` entries of W, stored in the coarser of the two dtypes."""
    held = ours.raw(tensor.name).dtype
    unit = max(rounding.roundoff(d) for d in (torch.float32, case.torch_dtype, held))
    return unit * float(torch.linalg.vector_norm(exact)) * (1 + math.log2(max(case.weight.shape)))


@check(
    "init",
    "critical",
    title="random tensors are drawn from another distribution than the reference's",
    failure_mode="the adapter's first steps are larger or smaller than the reference's",
    domain=LARGE,
    applies=_has_random,
    examples=2,
    against=("peft",),
    follows=("step0.nothing_trains", "init.pairs", "init.seeded", "init.each_layer"),
)
def test_distribution(context: Context, case: Case) -> None:
    """Random tensors follow the reference's law: exact support, second moment, and a Kolmogorov-Smirnov test.

    A ~ U(±1/√in) (kaiming_uniform with a = √5); U ~ U(±1/√(r/2)) in equal pairs of columns.
    """
    for tensor in _random(context.variant):
        ours = _draws(context.layer, case, tensor.name)
        theirs = _draws(_reference_draw(context), case, tensor.name)
        try:
            _same_law(context, case, tensor, ours, theirs)
            _same_independence(context, case, tensor.name, ours, theirs)
        except Deviation as found:
            if tensor.gaussian and _is_gaussian(ours):
                found.diagnosis = drawn_from_a_gaussian(context.variant, tensor, _usual(ours, case.spec.rank))
            found.otherwise = drawn_otherwise(tensor.name, ours)
            raise


def drawn_otherwise(name: str, drawn: Tensor) -> Diagnosis | None:
    """What the law of some draws (n, rows, columns) is that is not the reference's, where it can be said."""
    vectors = drawn if drawn.shape[1] <= drawn.shape[2] else drawn.mT
    what = "rows" if vectors is drawn else "columns"
    gram = vectors @ vectors.mT
    lengths = gram.diagonal(dim1=1, dim2=2)
    if bool((drawn == drawn.flatten()[0]).all()):
        law = f"{name} starts at {float(drawn.flatten()[0]):.4g} everywhere"
    elif bool(((lengths - 1).abs() < UNIT_VECTORS).all()):
        apart = bool(((gram - torch.diag_embed(lengths)).abs() < UNIT_VECTORS).all())
        law = f"the {what} of {name} start {'orthonormal' if apart else 'with length one'}"
    elif _is_gaussian(drawn):
        law = f"{name} is drawn from a Gaussian"
    else:
        return None
    return Diagnosis(
        f"init.law_of_{name}",
        f"{law}, where the references draw its entries from a uniform law",
        "the adapter's first steps are larger or smaller than the reference's",
        remedy=f"draw {name} as the references do",
    )


def _is_gaussian(drawn: Tensor) -> bool:
    """Entries from N(0, σ²), whatever σ."""
    entries = drawn.flatten().numpy()
    sigma = float(entries.std())
    if not sigma:
        return False
    centred = abs(float(entries.mean())) < STANDARD_ERRORS * sigma / math.sqrt(entries.size)
    bell = abs(float(scipy.stats.kurtosis(entries))) < STANDARD_ERRORS * math.sqrt(24 / entries.size)
    return centred and bell and float(scipy.stats.kstest(entries / sigma, "norm").pvalue) > FALSE_ALARM


def _usual(drawn: Tensor, rank: int) -> bool:
    """Whether σ is at most PEFT's largest choices (1/√r covers 1/r, 1/√in and the usual 0.02), and not next to none."""
    least, most = GAUSSIAN_SIGMA
    return least < float(drawn.std()) < most / math.sqrt(rank)


def drawn_from_a_gaussian(variant: Variant, tensor: Canonical, usual: bool = True) -> Diagnosis:
    """The finding's words for a start that one reference has and another has not; ``usual``: of a size in use."""
    means = (
        "the first steps have another size than with the published defaults; fine in itself"
        if usual
        else "the first steps are many times larger or smaller than with the published defaults; the paper names no "
        "standard deviation"
    )
    return Diagnosis(
        f"{variant.id}.gaussian_a",
        f"{tensor.name} is drawn from a Gaussian{'' if usual else ' of an unusual size'}, where the codes draw "
        "uniformly by default",
        means,
        agrees_with=tensor.gaussian
        if usual
        else "the LoRA paper (§4.1, a random Gaussian of no stated size)",
        documented_by=("gaussian", "normal (law|distribution|start|values?)", "normal_"),
        severity="minor" if usual else "major",
        remedy=f"draw {tensor.name} uniformly, as the codes do",
    )


def _reference_draw(context: Context) -> Callable[[Case, int], Layer]:
    def draw(case: Case, seed: int) -> Layer:
        seed_torch(10_000 + seed)
        return Layer(context.oracle.adapt(case.base(), case.spec), context.oracle.name)

    return draw


def _draws(make: Callable[[Case, int], Layer], case: Case, name: str) -> Tensor:
    """(DRAWS, *shape) independent draws of one tensor."""
    drawn = []
    for i in range(DRAWS):
        layer = make(case, i)
        if name not in layer.names:
            raise NoSlot(f"the subject has no slot {name!r}", name)
        drawn.append(layer.value(name))
    return torch.stack(drawn)


def _same_law(context: Context, case: Case, tensor: Canonical, ours: Tensor, theirs: Tensor) -> None:
    if ours.shape != theirs.shape:
        raise NoSlot(f"{tensor.name} has another shape than the reference's", tensor.name)
    assert tensor.uniform is not None
    bound = tensor.uniform.bound(case.out_features, case.in_features, case.spec)
    largest = float(ours.abs().max())
    # The support of a uniform law is exact; an oracle with another law (a Gaussian) has none to compare with.
    if float(theirs.abs().max()) <= bound * (1 + SUPPORT):
        quantity = f"largest entry of {DRAWS} draws of {tensor.name}"
        context.demand(
            REACHED * bound < largest <= bound * (1 + SUPPORT),
            case,
            quantity,
            f"{bound:.4g}, reached",
            f"{largest:.4g}",
        )
    # Every second entry along the last axis: columns may come in equal pairs, which are one draw.
    mine, other = (t[..., ::2].flatten() if tensor.uniform and tensor.uniform.columns_paired else t.flatten()
                   for t in (ours, theirs))  # fmt: skip
    moment = float(mine.square().mean() / other.square().mean())
    error = math.hypot(
        *(float(t.square().std() / t.square().mean()) / t.numel() ** 0.5 for t in (mine, other))
    )
    context.worst.see(abs(math.log(moment)) / error if moment > 0 else math.inf, STANDARD_ERRORS)
    held = moment > 0 and abs(math.log(moment)) < STANDARD_ERRORS * error
    context.demand(held, case, f"second moment of {tensor.name}", "1 (relative)", f"{moment:.3g}")
    _same_shape_of_law(context, case, tensor.name, mine, other)
    p = float(scipy.stats.ks_2samp(mine.numpy(), other.numpy()).pvalue)
    context.demand(
        p > FALSE_ALARM,
        case,
        f"Kolmogorov-Smirnov p-value of {tensor.name}",
        f"above {FALSE_ALARM:g}",
        f"{p:.3g}",
    )


def _same_shape_of_law(context: Context, case: Case, name: str, ours: Tensor, theirs: Tensor) -> None:
    """Fourth moments tell a uniform law from a Gaussian of the same size with a tenth of the draws."""
    actual, wanted = (float(scipy.stats.kurtosis(t.numpy(), fisher=False)) for t in (ours, theirs))
    error = math.sqrt(24 / ours.numel()) * math.sqrt(2)  # of a Gaussian's; a uniform law's is smaller
    held = abs(actual - wanted) < STANDARD_ERRORS * error
    context.demand(held, case, f"kurtosis of {name}", f"{wanted:.3g}", f"{actual:.3g}")


def _same_independence(context: Context, case: Case, name: str, ours: Tensor, theirs: Tensor) -> None:
    """Rows and columns of one draw are as independent as the reference's: equal ones lower the rank, and the mean
    square of the cosines between the rows tells rows that were made orthogonal, or alike."""
    actual, wanted = (int(torch.linalg.matrix_rank(t[0])) for t in (ours, theirs))
    context.demand(actual == wanted, case, f"rank of one draw of {name}", wanted, actual)
    mine, other = _cosines(ours), _cosines(theirs)
    if not other.numel():
        return
    error = math.hypot(*(float(c.std()) / c.numel() ** 0.5 for c in (mine, other)))
    gap = abs(float(mine.mean() - other.mean()))
    quantity = f"mean square of the cosine between rows of {name}"
    context.demand(
        gap <= STANDARD_ERRORS * error,
        case,
        quantity,
        f"{float(other.mean()):.3g}",
        f"{float(mine.mean()):.3g}",
    )


def _cosines(drawn: Tensor) -> Tensor:
    """The squared cosines between neighbouring rows, two by two, of all draws (DRAWS, rows, columns)."""
    rows = torch.nn.functional.normalize(drawn, dim=-1)
    return (rows[:, :-1:2] * rows[:, 1::2]).sum(-1).square().flatten()


@check(
    "init",
    "critical",
    title="U does not start in the reference's pairs of equal columns, by which a fresh adapter changes nothing",
    failure_mode="reflections that do not cancel change the model's output before the first step",
    applies=lambda variant: any(t.uniform and t.uniform.columns_paired for t in variant.tensors),
)
def test_pairs(context: Context, case: Case) -> None:
    """Columns 2i and 2i+1 of U start equal, and different pairs start different."""
    for tensor in (t for t in context.variant.tensors if t.uniform and t.uniform.columns_paired):
        ours, theirs = context.layer(case), context.reference(case)
        if tensor.name not in ours.names or ours.view(tensor.name).shape != theirs.view(tensor.name).shape:
            raise NoSlot(f"the subject has no slot {tensor.name!r} of the canonical shape", tensor.name)
        mine, other = _equal_columns(ours.value(tensor.name)), _equal_columns(theirs.value(tensor.name))
        context.demand(mine == other, case, f"which columns of {tensor.name} start equal", other, mine)


def _equal_columns(U: Tensor) -> list[list[int]]:
    groups: list[list[int]] = []
    for i in range(U.shape[1]):
        for group in groups:
            if torch.equal(U[:, group[0]], U[:, i]):
                group.append(i)
                break
        else:
            groups.append([i])
    return groups


@check(
    "init",
    "major",
    title="initialisation does not follow torch's global generator",
    failure_mode="runs could not be repeated, or every layer and every run would start alike",
    domain=TALL_ENOUGH,
    applies=_has_random,
    examples=3,
    against=("paper",),
    follows=("step0.nothing_trains", "init.deterministic"),
    diagnose=False,
)
def test_seeded(context: Context, case: Case) -> None:
    """The same torch seed gives the same random tensors, another seed gives others."""
    for tensor in _random(context.variant):
        first, again, other = (context.layer(case, seed) for seed in (1, 1, 2))
        if tensor.name not in first.names:
            raise NoSlot(f"the subject has no slot {tensor.name!r}", tensor.name)
        same = rounding.same_values(first.value(tensor.name), again.value(tensor.name))
        context.demand(same, case, f"{tensor.name} drawn twice from one seed", "equal", "different")
        differs = not torch.equal(first.value(tensor.name), other.value(tensor.name))
        context.demand(differs, case, f"{tensor.name} drawn from two seeds", "different", "equal")


@check(
    "init",
    "major",
    title="layers of one shape start with the same random factors",
    failure_mode="the adapters of a model are correlated at the start, where the reference draws each of its own",
    domain=TALL_ENOUGH,
    applies=lambda variant: bool(_random(variant)),
    examples=3,
    against=("paper",),
    follows=("step0.nothing_trains", "init.seeded", "init.deterministic"),
    diagnose=False,
)
def test_each_layer(context: Context, case: Case) -> None:
    """Two layers of one shape that are adapted one after the other draw different tensors."""
    first = context.layer(case)
    second = adapt(context.subject, case.base(), case.spec)  # torch's generator goes on from where it was
    for tensor in _random(context.variant):
        if tensor.name not in first.names or tensor.name not in second.names:
            raise NoSlot(f"the subject has no slot {tensor.name!r}", tensor.name)
        differs = not torch.equal(first.value(tensor.name), second.value(tensor.name))
        context.demand(differs, case, f"{tensor.name} of two layers", "different", "equal")


STAYS = Diagnosis(
    "init.training_mode",
    "a fresh adapter is in training mode whatever the mode of the base",
    "until somebody calls eval() once more, a model that was in evaluation mode answers at random",
    agrees_with="PEFT, whose fresh layers are in training mode until eval() is called",
    documented_by=("training mode",),
    severity="minor",
    remedy="give a fresh adapter the mode of the layer that it is put on: `adapter.train(base.training)`",
)


@check(
    "init",
    "major",
    title="over a base in evaluation mode the adapter drops entries all the same",
    failure_mode="a model that is adapted to be evaluated, or that is loaded for it, answers at random",
    domain=Domain(dtypes=("float32",), sizes=(3, 8), batches=((16,),), dropout=0.4),
    applies=lambda variant: variant.has_dropout,
    examples=2,
    against=("peft",),
    follows=("dropout.off_in_eval", "dropout.active"),
    diagnose=False,
)
def test_evaluation_mode(context: Context, case: Case) -> None:
    """A fresh adapter on a base in evaluation mode is in evaluation mode: with p > 0, two calls answer alike.

    Stricter than PEFT, whose fresh layers are in training mode.
    """
    mine, what = drops_over_evaluation(context.subject, case), "two calls over a base in evaluation mode"
    if mine and drops_over_evaluation(context.subject, case, told=True):
        raise ToldElsewhere("eval() changes nothing either", "dropout.off_in_eval")
    if mine and drops_over_evaluation(context.oracle, case):
        raise Deviation(case, what, "equal", "different", diagnosis=STAYS, shared=True)
    context.demand(not mine, case, what, "equal", "different")


@check(
    "init",
    "critical",
    title="what a key in the configuration determines is not what the reference draws from it",
    failure_mode="checkpoints that leave these tensors out, or carry the key alone, give another model",
    domain=TALL_ENOUGH,
    applies=lambda variant: bool(_keyed(variant)),
    examples=3,
    against=("peft", "paper"),
    follows=("shapes.canonical",),
)
def test_keyed(context: Context, case: Case) -> None:
    """What is drawn from a generator of the spec's own is the reference's for each key, whatever torch's seed."""
    for option in (o for o in context.variant.options if o.key):
        drawn = {key: dataclasses.replace(case, spec=option.put(case.spec, key)) for key in (3, 4)}
        for tensor in _keyed(context.variant):
            first, other = (context.layer(c, seed) for seed, c in enumerate(drawn.values()))
            if tensor.name not in first.names:
                raise NoSlot(f"the subject has no slot {tensor.name!r}", tensor.name)
            exact = context.reference(drawn[3]).value(tensor.name)
            noise = value_noise(first, tensor, exact, case)
            context.judge(case, f"{tensor.name} of one key", first.value(tensor.name), exact, noise, "value")
            differs = not torch.equal(first.value(tensor.name), other.value(tensor.name))
            context.demand(differs, case, f"{tensor.name} of two keys", "different", "equal")


@check(
    "init",
    "critical",
    title="attaching the adapter changes the base weight or bias",
    failure_mode="other adapters and a later detach would see another base model",
    against=("paper",),
    applies=lambda variant: not _is_factorised(variant),
    diagnose=False,
)
def test_base_weight(context: Context, case: Case) -> None:
    """Attaching leaves the base weight and bias bitwise as they were (PiSSA's residual is asked elsewhere)."""
    context.layer(case)  # a rank that may be refused is no matter of the base
    base = case.base()
    seed_torch(case.seed)
    ask_layer = context.calling("adapt", context.subject.adapt, base, case.spec)
    for name, before in (("weight", case.weight), ("bias", case.bias_vector)):
        held = _held(base, name)
        if before is not None and held is not None:
            same = rounding.same_values(held.detach(), before)
            context.demand(same, case, f"the base {name} after adapt", "unchanged", "changed")
    del ask_layer


def _held(base: torch.nn.Module, name: str) -> Tensor | None:
    """The tensor that the layer stores, behind a parametrisation too; None where the layer was taken apart."""
    if parametrize.is_parametrized(base, name):
        found = getattr(base.parametrizations[name], "original", None)  # type: ignore[index]
    else:
        found = getattr(base, name, None)
    return found if isinstance(found, Tensor) else None


@check(
    "init",
    "critical",
    title="the factors are not the principal part of the weight",
    failure_mode="other directions than the largest are trained, or with other step sizes",
    domain=TALL_ENOUGH,
    applies=_is_factorised,
)
def test_principal(context: Context, case: Case) -> None:
    """(α/r) B A is the rank-r truncated SVD of W, balanced: A Aᵀ = Bᵀ B = S_r / s (PiSSA Eq. (2), (3)).

    Compared by what the factorisation determines: the product, and the two Gram matrices' sizes.
    """
    ours, theirs = context.layer(case), context.reference(case)
    factorised = context.variant.factorised
    assert factorised is not None  # the check applies to no other variant
    for name in factorised.names:
        if name not in ours.names or ours.view(name).shape != theirs.view(name).shape:
            raise NoSlot(f"the subject has no slot {name!r} of the canonical shape", name)
    for name, determined in factorised.determined.items():
        actual, exact = (
            determined({n: layer.value(n) for n in factorised.names}, case.spec) for layer in (ours, theirs)
        )
        try:
            context.judge(case, name, actual, exact, factor_noise(case, exact))
        except Deviation as found:
            if _is_approximate(context, case, factorised):
                found.diagnosis = approximate_factors(context.variant)
            raise


def approximate_factors(variant: Variant) -> Diagnosis:
    """What is said of factors that a randomised method finds, which is right on average and quick."""
    return Diagnosis(
        f"{variant.id}.approximate_factors",
        "the factors are those of a randomised, approximate singular value decomposition",
        "the start differs a little from run to run, and what is trained is near the principal part, not the very one",
        agrees_with="PEFT's `init_lora_weights=\"pissa_niter_N\"` and the paper's fast SVD",
        documented_by=(
            r"\bsvd_lowrank\b",
            r"\bn?iter(ations?)?\b",
            r"(randomi[sz]ed|approximate|fast)\W+(\w+\W+)?(svd|singular)",
        ),
        severity="minor",
        remedy="take the exact decomposition (torch.linalg.svd), or say in the docstring that it is approximate",
    )


def _is_approximate(context: Context, case: Case, factorised: Factorised) -> bool:
    """Whether the product varies with torch's seed, and takes nearly as much out of the weight as can be taken out.

    On layers with directions to spare, where random ones take out less: the mean over some weights.
    """
    product = next(iter(factorised.determined.values()))
    shares, varies = [], False
    for seed in range(WEIGHTS):
        large = context.abilities.fitted(case.but(in_features=24, out_features=16, rank=2, seed=seed))
        W, layers = large.weight.double(), [context.layer(large, again) for again in (1, 2)]
        one, other = (product({n: each.value(n) for n in factorised.names}, large.spec) for each in layers)
        most = torch.linalg.svdvals(W)[: large.spec.rank].square().sum()
        shares.append(float((W.square().sum() - (W - one).square().sum()) / most))
        varies = varies or not rounding.same_values(one, other)
    return varies and sum(shares) > NEAR_PRINCIPAL * len(shares)


def factor_noise(case: Case, exact: Tensor) -> float:
    """Rounding of a truncated SVD: relative to ‖W‖, amplified by the gap behind the r-th singular value."""
    S = torch.linalg.svdvals(case.weight.double())
    r = case.spec.rank
    gap = float(S[r - 1] - (S[r] if r < len(S) else 0.0))
    unit = rounding.roundoff(rounding.coarser(case.torch_dtype))
    amplified = 1 + float(S[0]) / max(gap, 1e-12)
    return unit * float(torch.linalg.vector_norm(exact)) * amplified * math.sqrt(len(S))


def _left(context: Context, ours: Layer) -> Tensor:
    """The base weight that the subject has left behind. Raises NotApplicable if it does not show it."""
    base = context.variant.base
    if base is None or base.name not in ours.names:
        name = base.name if base else "weight"
        raise ToldElsewhere(
            f"the subject shows no residual {name}: init.identity asks whether it makes up the base",
            "init.identity",
        )
    return ours.value(base.name)


@check(
    "init",
    "critical",
    title="the base weight that is left behind is not the residual W − (α/r) B A",
    failure_mode="base plus adapter is another function than the base model",
    applies=_is_factorised,
    follows=("init.principal",),
)
def test_residual(context: Context, case: Case) -> None:
    """The frozen weight is exactly ``W_res = W − (α/r) B A`` (PiSSA Eq. (4)), in the base's dtype."""
    ours = context.layer(case)
    left = _left(context, ours)
    exact = context.residual(case, ours)
    if exact is None:
        names = " and ".join(context.variant.factorised.names if context.variant.factorised else ())
        raise NoSlot(f"the subject shows no slots {names}", names)
    unit = rounding.roundoff(rounding.coarser(case.torch_dtype))
    size = float(torch.linalg.vector_norm(case.weight.double())) * (1 + math.sqrt(case.spec.rank))
    name = context.variant.base.name if context.variant.base else ""
    context.judge(case, f"the residual weight {name}", left, exact, unit * size)


@check(
    "init",
    "critical",
    title="in one of its modes the adapter does not start as the reference does",
    failure_mode="the mode's first steps are others than the reference's",
    modes=True,
    follows=("init.deterministic", "init.identity", "shapes.canonical"),
)
def test_modes(context: Context, case: Case) -> None:
    """In each mode, deterministic tensors start at the reference's value and the layer at the identity if promised."""
    if mode_is_ignored(context, case):
        raise ToldElsewhere("the mode is ignored, which shapes.modes reports", "shapes.modes")
    _deterministic(context, case)
    if context.variant.starts_at_identity(case.spec):
        _identity(context, case)


PAIRED = Diagnosis(
    "init.singular_start",
    "in this mode the adapter starts at a point where its equation divides by rounding noise, or by zero",
    "a share of all seeds would start at NaN, the others at a function that another machine does not repeat",
    agrees_with="PEFT 0.21, whose Gram-Schmidt mode starts in equal pairs of columns",
    severity="major",
    remedy="start this mode at a point where its equation has a value, such as columns that are not equal in pairs",
)


@check(
    "init",
    "critical",
    title="in one of its modes the adapter starts at NaN, or where rounding decides what it computes",
    failure_mode="training would diverge before the first step, or start from another function on every machine",
    against=("paper",),
    modes=True,
    follows=("shapes.modes", "init.modes"),
    diagnose=False,
)
def test_finite_modes(context: Context, case: Case) -> None:
    """In each mode, output and gradients at the subject's own start are finite, and no division by rounding noise."""
    if mode_is_ignored(context, case):
        raise ToldElsewhere("the mode is ignored, which shapes.modes reports", "shapes.modes")
    if not _has_a_value(context, case):
        raise OutsideDomain(
            "at this rank and size the mode's equation divides by rounding noise whatever the start"
        )
    ours = context.layer(case)
    start = ours.values()
    for name, found in rounding.observe(ours, case, gradients=True).items():
        if not bool(torch.isfinite(found).all()):
            raise Deviation(case, f"{name} at the start", "finite", "not finite", diagnosis=_paired(start))
    moved = _moved(context, case, "initial")
    if not moved < SINGULAR:
        quantity = "roundings of the output per rounding of the start"
        raise Deviation(case, quantity, f"below {SINGULAR:g}", f"{moved:.3g}", diagnosis=_paired(start))


def _has_a_value(context: Context, case: Case) -> bool:
    """Whether far from every start, too, the equation's output is no matter of rounding."""
    return _moved(context, case, "far") < SINGULAR


def _moved(context: Context, case: Case, where: State) -> float:
    """How many roundings of the output one rounding of the parameters is."""
    pair = context.pair(case, where)
    size = float(torch.linalg.vector_norm(rounding.observe(pair.ours, case)["output"]))
    return context.noise(pair)["output"] / (rounding.roundoff(torch.float32) * size) if size else 0.0


def _paired(start: dict[str, Tensor]) -> Diagnosis | None:
    """That the start has equal columns, of which orthogonalisation leaves nothing, if it has."""
    return PAIRED if any(_has_equal_columns(value) for value in start.values()) else None


def _has_equal_columns(value: Tensor) -> bool:
    """Whether some columns of a matrix are the same: made orthogonal to one another, nothing is left of them."""
    return value.dim() == 2 and len(_equal_columns(value)) < value.shape[1]


ROUNDED = Diagnosis(
    "init.rounded",
    "over a half-precision base initial values are computed in the base's dtype, though they are kept in a wider one",
    "the adapted model is not exactly the base model before the first step, and training starts from there",
    agrees_with="PEFT 0.21, which takes DoRA's magnitude and DeLoRA's norms in the base's dtype",
    documented_by=(r"(norm|magnitude)\w*.{0,60}(base's|base|weight's) (dtype|precision)",),
    severity="minor",
    remedy="compute the initial values in float32, and round nothing that is kept in float32",
)


@check(
    "init",
    "major",
    title="over a half-precision base a tensor does not start at the value of the dtype that it is kept in",
    failure_mode="the first steps of training start beside the base model",
    domain=Domain(dtypes=("bfloat16", "float16"), sizes=(6, 16)),
    against=("paper",),
    examples=6,
    applies=lambda variant: any(t.exact for t in variant.tensors),
    follows=("init.deterministic", "dtype.output"),
)
def test_half(context: Context, case: Case) -> None:
    """Over a bf16 or fp16 base, tensors that the reference sets are right to the rounding of the dtype they are in."""
    ours, theirs = context.layer(case), context.evaluator(case)
    for tensor in [
        t for t in context.variant.tensors if t.exact and {t.name} <= {*ours.names} & {*theirs.names}
    ]:
        actual, exact = ours.value(tensor.name), theirs.value(tensor.name)
        if actual.shape != exact.shape:
            continue  # a finding of shapes.canonical
        unit = rounding.roundoff(rounding.coarser(ours.raw(tensor.name).dtype))
        terms = 1 + math.log2(max(case.weight.shape))
        noise = unit * float(torch.linalg.vector_norm(exact)) * terms
        try:
            context.judge(case, f"initial {tensor.name}", actual, exact, noise, "value")
        except Deviation as found:
            # Further off than the base's dtype accounts for, it is another value.
            wide = value_noise(ours, tensor, exact, case)
            context.judge(case, f"initial {tensor.name}", actual, exact, wide, "value")
            found.diagnosis = ROUNDED
            raise
