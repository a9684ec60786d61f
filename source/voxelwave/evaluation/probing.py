"""What frozen features tell: simple classifiers, scored on subjects that they were not fitted on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from numpy import ndarray

from voxelwave.evaluation.classification import area_under_curve, balanced_accuracy, mean_dice
from voxelwave.evaluation.estimates import Estimate, estimate
from voxelwave.evaluation.retrieval import unit_rows
from voxelwave.ops.seeding import key_to_seed, numpy_generator

Features = Float[ndarray, "sample dim"]
Targets = Int[ndarray, " sample"]
Groups = Shaped[ndarray, " sample"]
Probabilities = Float[ndarray, "sample class"]
Rows = Int[ndarray, " _"]

BALANCED_ACCURACY, AUC, DICE = "balanced accuracy", "AUC", "Dice"
INVERSE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
FOR_TOKENS = 0.1  # there are many tokens for each of their dimensions: the penalty hardly matters
INNER_FOLDS = 3
ITERATIONS = 1000
TRANSFER_DRAWS = 4  # of few labelled heads: which they are matters


def probe_problem(targets: Targets, groups: Groups) -> str | None:
    """Say why nothing can be learned and scored by subject, or None."""
    classes = np.unique(targets)
    if len(classes) < 2:
        return f"every case is of class {classes[0]}: a probe needs two classes" if len(classes) else "no case has it"
    subjects = {int(one): len(np.unique(groups[targets == one])) for one in classes}
    few = [f"{one} has {count}" for one, count in subjects.items() if count < 2]
    return f"each class needs two subjects, one to learn from and one to be asked, but class {few[0]}" if few else None


def linear_probe(
    features: Features,
    targets: Targets,
    groups: Groups,
    *,
    inverse_penalties: Sequence[float] = INVERSE_PENALTIES,
    folds: int = 5,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Score logistic regression on standardised features: balanced accuracy, and AUC (mean of one class against all).

    Every subject (group) is asked by a classifier fitted on others. Where several penalties are given, the one with the
    best AUC over folds of these others is taken, the stronger of equals.

    Raises ValueError where `probe_problem` finds one.
    """
    _check(targets, groups)

    def fit(train: Rows, test: Rows) -> Probabilities:
        chosen = inverse_penalties[0]
        if len(inverse_penalties) > 1:
            chosen = _best_penalty(features[train], targets[train], groups[train], inverse_penalties, seed)
        return _logistic(features[train], targets[train], features[test], chosen)

    return _scores(_out_of_fold(fit, targets, groups, folds, seed), targets, groups, seed)


def knn_probe(
    features: Features, targets: Targets, groups: Groups, *, neighbours: int = 5, seed: int = 0
) -> dict[str, Estimate]:
    """Score the vote of the nearest samples by cosine, of other subjects: balanced accuracy and AUC.

    Every neighbour's vote is divided by the number of samples of its class among those that may vote. The subject that
    is asked has no vote, which makes its own class rarer: undivided votes would find random targets less often than
    chance, and divided ones would tell equal votes apart by it. So one subject of each other class, drawn at random,
    has no vote either.

    Raises ValueError where `probe_problem` finds one.
    """
    _check(targets, groups)
    classes = np.unique(targets)
    unit = unit_rows(features)
    similarity = unit @ unit.T
    similarity[~_may_vote(targets, groups, seed)] = -np.inf
    votes = np.zeros((len(targets), len(classes)))
    for row, order in enumerate(np.argsort(-similarity, axis=1, kind="stable")):
        eligible = targets[order[np.isfinite(similarity[row, order])], None] == classes
        # No more vote than the smallest class has: it could not win otherwise.
        count = max(1, min(neighbours, int(eligible.sum(0).min())))
        weighed = eligible[:count].sum(0) / np.maximum(eligible.sum(0), 1)
        votes[row] = weighed / weighed.sum()
    return _scores(votes, targets, groups, seed)


def _may_vote(targets: Targets, groups: Groups, seed: int) -> Bool[ndarray, "asked sample"]:
    """Return whose vote counts for each sample: no one's of its subject, nor of one other subject a class."""
    may: Bool[ndarray, "asked sample"] = groups[:, None] != groups[None, :]
    members = {one: np.unique(groups[targets == one]) for one in np.unique(targets).tolist()}
    for group in np.unique(groups):
        own = groups == group
        for one, of in members.items():
            if group not in of:
                drawn = numpy_generator(seed, "no vote", str(group), str(one)).choice(of)
                may[np.ix_(own, (groups == drawn) & (targets == one))] = False
    return may


def tissue_probe(
    features: Features, labels: Targets, groups: Groups, *, folds: int = 5, seed: int = 0
) -> dict[str, Estimate]:
    """Score logistic regression on single tokens: balanced accuracy, and the mean Dice of the classes.

    Where pooled features are asked for contrasts, a random network answers too: histograms differ. Where a tissue lies
    has to be seen. Raises ValueError where `probe_problem` finds one.
    """
    _check(labels, groups)
    probabilities = _out_of_fold(
        lambda train, test: _logistic(features[train], labels[train], features[test], FOR_TOKENS),
        *(labels, groups, folds, seed),
    )
    classes, true = np.unique(labels, return_inverse=True)
    guessed = probabilities.argmax(1)
    # Of a class with the share p of all tokens, guessing each of k classes as often has a Dice of 2p / (kp + 1).
    shares, number = np.bincount(true) / len(true), len(classes)
    return {
        BALANCED_ACCURACY: estimate(
            lambda rows: balanced_accuracy(true[rows], guessed[rows]), groups, chance=1 / number, seed=seed
        ),
        DICE: estimate(
            lambda rows: mean_dice(true[rows], guessed[rows]),
            groups,
            chance=float((2 * shares / (number * shares + 1)).mean()),
            seed=seed,
        ),
    }


class LabelledTokens(NamedTuple):
    """Tokens with the class of each, and the subject that each is of."""

    features: Features
    labels: Targets
    subjects: Groups


def transfer_probe(fitted: LabelledTokens, asked: LabelledTokens, *, heads: int, seed: int = 0) -> dict[str, Estimate]:
    """Score logistic regression that was fitted on tokens of one kind of scan, and reads those of another.

    The subjects are parted in halves, and each half is asked by classifiers that were fitted on `heads` other subjects,
    or on all others where they are fewer. Where others are left, up to four classifiers are fitted, each on other
    heads, and the score is the mean of their balanced accuracies.

    Raises ValueError where `transfer_problem` finds one.
    """
    if problem := transfer_problem(fitted, asked):
        raise ValueError(problem)
    hits = np.zeros(len(asked.labels))  # of each token, the share of classifiers that tell it right
    for half in _halves(fitted.subjects, asked.subjects, seed):
        rows = np.flatnonzero(np.isin(asked.subjects, half))
        others = np.setdiff1d(fitted.subjects, half)
        order = numpy_generator(seed, "labelled heads").permutation(others)
        draws = min(TRANSFER_DRAWS, max(1, len(others) // heads))
        for draw in range(draws):
            train = np.isin(fitted.subjects, order[draw * heads :][:heads])
            labels = fitted.labels[train]
            told = _logistic(fitted.features[train], labels, asked.features[rows], FOR_TOKENS)
            hits[rows] += (np.unique(labels)[told.argmax(1)] == asked.labels[rows]) / draws
    classes, true = np.unique(asked.labels, return_inverse=True)

    def found(rows: Rows) -> float:
        # The mean over classifiers of their balanced accuracies, since each is a sum of hits.
        counts = np.bincount(true[rows])
        return float((np.bincount(true[rows], hits[rows])[counts > 0] / counts[counts > 0]).mean())

    return {BALANCED_ACCURACY: estimate(found, asked.subjects, chance=1 / len(classes), seed=seed)}


def transfer_problem(fitted: LabelledTokens, asked: LabelledTokens) -> str | None:
    """Say why nothing can be learned of one kind of scan and asked of the other, or None."""
    if len(np.unique(asked.labels)) < 2 or len(np.unique(fitted.labels)) < 2:
        return "two tissues are needed that scans of both kinds have"
    if any(not len(np.setdiff1d(fitted.subjects, half)) for half in _halves(fitted.subjects, asked.subjects, 0)):
        return "two subjects are needed, one to learn from and one to be asked"
    return None


def _halves(fitted: Shaped[ndarray, " _"], asked: Shaped[ndarray, " _"], seed: int) -> list[Shaped[ndarray, " _"]]:
    """Part the subjects that are asked in halves, with as many in each that can be learned from as well."""
    order = numpy_generator(seed, "halves").permutation(np.unique(asked))
    learned = np.isin(order, fitted)
    order = np.concatenate([order[learned], order[~learned]])
    return [half for half in (order[::2], order[1::2]) if len(half)]


def _check(targets: Targets, groups: Groups) -> None:
    if problem := probe_problem(targets, groups):
        raise ValueError(problem)


def _scores(probabilities: Probabilities, targets: Targets, groups: Groups, seed: int) -> dict[str, Estimate]:
    classes, true = np.unique(targets, return_inverse=True)
    guessed = probabilities.argmax(1)
    return {
        BALANCED_ACCURACY: estimate(
            lambda rows: balanced_accuracy(true[rows], guessed[rows]), groups, chance=1 / len(classes), seed=seed
        ),
        AUC: estimate(lambda rows: _mean_auc(probabilities[rows], true[rows]), groups, chance=0.5, seed=seed),
    }


def _mean_auc(probabilities: Probabilities, true: Targets) -> float:
    """Of two classes that of the second; of more the mean of each against the others. nan where one has no sample."""
    columns = range(1, 2) if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    return float(np.mean([area_under_curve(probabilities[:, one], true == one) for one in columns]))


def _out_of_fold(
    fit: Callable[[Rows, Rows], Probabilities], targets: Targets, groups: Groups, folds: int, seed: int
) -> Probabilities:
    """Return for every row what `fit` on the rows of other groups says of it, a column a class of `targets`."""
    classes = np.unique(targets)
    probabilities = np.zeros((len(targets), len(classes)))
    for train, test in _folds(targets, groups, folds, seed):
        # A class of few subjects may be missing from a fold's training part.
        probabilities[np.ix_(test, np.isin(classes, targets[train]))] = fit(train, test)
    return probabilities


def _folds(targets: Targets, groups: Groups, folds: int, seed: int) -> Iterator[tuple[Rows, Rows]]:
    from sklearn.model_selection import StratifiedGroupKFold

    number = min(folds, *(len(np.unique(groups[targets == one])) for one in np.unique(targets)))
    splitter = StratifiedGroupKFold(number, shuffle=True, random_state=key_to_seed(seed, "folds") % 2**32)
    yield from splitter.split(np.zeros(len(targets)), targets, groups)


def _best_penalty(
    features: Features, targets: Targets, groups: Groups, inverse_penalties: Sequence[float], seed: int
) -> float:
    if probe_problem(targets, groups):
        return inverse_penalties[len(inverse_penalties) // 2]
    true = np.unique(targets, return_inverse=True)[1]
    areas = {}
    for candidate in sorted(inverse_penalties):

        def fit(train: Rows, test: Rows, candidate: float = candidate) -> Probabilities:
            return _logistic(features[train], targets[train], features[test], candidate)

        areas[candidate] = _mean_auc(_out_of_fold(fit, targets, groups, INNER_FOLDS, seed), true)
    return max(areas, key=lambda candidate: areas[candidate])


def _logistic(
    train: Features, targets: Targets, test: Float[ndarray, "asked dim"], inverse_penalty: float
) -> Float[ndarray, "asked class"]:
    """Return the probability of each class of `targets`, for every row of `test`."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(np.unique(targets)) == 1:
        return np.ones((len(test), 1))
    model: Any = make_pipeline(
        StandardScaler(), LogisticRegression(C=inverse_penalty, class_weight="balanced", max_iter=ITERATIONS)
    )
    with warnings.catch_warnings():
        # Of features that part the classes the best weights are infinite: where the iterations end is good enough.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return np.asarray(model.fit(train.astype(np.float64), targets).predict_proba(test.astype(np.float64)))
