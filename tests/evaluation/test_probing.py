import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from voxelwave.evaluation.probing import (
    BALANCED_ACCURACY,
    LabelledTokens,
    knn_probe,
    linear_probe,
    probe_problem,
    tissue_probe,
    transfer_probe,
    transfer_problem,
)
from voxelwave.ops.seeding import key_to_seed, numpy_generator


def samples(num_subjects=30, scans=2, dim=6, num_classes=2, signal=1.0, seed=0):
    """Return features, targets and subjects; the first dimensions tell the class."""
    generator = np.random.default_rng(seed)
    groups = np.repeat([f"subject {number}" for number in range(num_subjects)], scans)
    targets = np.arange(len(groups)) // scans % num_classes
    features = generator.normal(size=(len(groups), dim))
    features[np.arange(len(groups)), targets] += signal
    return features.astype(np.float32), targets, groups


def folds(targets, groups, number, seed=0):
    splitter = StratifiedGroupKFold(number, shuffle=True, random_state=key_to_seed(seed, "folds") % 2**32)
    return list(splitter.split(targets, targets, groups))


def classifier(penalty):
    return make_pipeline(StandardScaler(), LogisticRegression(C=penalty, class_weight="balanced", max_iter=1000))


@pytest.mark.parametrize("num_classes", [2, 3])
def test_the_linear_probe_equals_sklearn_fold_by_fold(num_classes):
    features, targets, groups = samples(num_classes=num_classes)
    wide = features.astype(np.float64)
    probabilities = np.zeros((len(targets), num_classes))
    for train, test in folds(targets, groups, 5):
        probabilities[test] = classifier(0.1).fit(wide[train], targets[train]).predict_proba(wide[test])
    found = linear_probe(features, targets, groups, inverse_penalties=(0.1,))
    expected = balanced_accuracy_score(targets, probabilities.argmax(1))
    assert found["balanced accuracy"].value == pytest.approx(expected)
    scores = probabilities[:, 1] if num_classes == 2 else probabilities
    assert found["AUC"].value == pytest.approx(roc_auc_score(targets, scores, multi_class="ovr"))
    assert 0.5 < found["AUC"].value < 1
    assert [found[name].chance for name in found] == [1 / num_classes, 0.5]


def test_the_penalty_is_chosen_on_the_other_subjects_alone():
    features, targets, groups = samples(num_subjects=20, dim=40, signal=1.5, seed=3)
    wide, penalties = features.astype(np.float64), (1e-4, 1e-2, 1.0)
    probabilities, chosen = np.zeros(len(targets)), []
    for train, test in folds(targets, groups, 5):
        areas = []
        for penalty in penalties:
            inner = np.zeros(len(train))
            for fit, ask in folds(targets[train], groups[train], 3):
                model = classifier(penalty).fit(wide[train][fit], targets[train][fit])
                inner[ask] = model.predict_proba(wide[train][ask])[:, 1]
            areas.append(roc_auc_score(targets[train], inner))
        chosen.append(penalties[int(np.argmax(areas))])
        probabilities[test] = classifier(chosen[-1]).fit(wide[train], targets[train]).predict_proba(wide[test])[:, 1]
    assert len(set(chosen)) > 1
    found = linear_probe(features, targets, groups, inverse_penalties=penalties)
    assert found["AUC"].value == pytest.approx(roc_auc_score(targets, probabilities))


@pytest.mark.parametrize("probe", [linear_probe, knn_probe, tissue_probe])
def test_knowing_the_subject_tells_nothing_of_it(probe):
    # Scans of a subject are the same vector, and subjects have nothing in common.
    _, targets, groups = samples(num_subjects=24, scans=4)
    features = np.random.default_rng(1).normal(size=(24, 64)).repeat(4, axis=0).astype(np.float32)
    assert probe(features, targets, groups)["balanced accuracy"].value < 0.75
    own = np.arange(len(targets)).astype(str)  # as if every scan were a subject's only one
    assert probe(features, targets, own)["balanced accuracy"].value == 1.0


@pytest.mark.parametrize("probe", [linear_probe, knn_probe, tissue_probe])
def test_features_that_part_the_classes_are_found_to(probe):
    found = probe(*samples(num_classes=3, signal=20.0))
    assert [(one.value, one.error) for one in found.values()] == [(1.0, 0.0)] * 2


def test_the_nearest_neighbours_vote_as_in_plain_loops():
    features, targets, groups = samples(num_classes=3, signal=0.8, dim=5)
    votes = np.zeros((len(targets), 3))
    for i, vector in enumerate(features.astype(np.float64)):
        silent = {
            numpy_generator(0, "no vote", str(groups[i]), str(one)).choice(np.unique(groups[targets == one]))
            for one in range(3)
            if one != targets[i]
        }
        others = []
        for j, other in enumerate(features.astype(np.float64)):
            if groups[j] != groups[i] and groups[j] not in silent:
                others.append((-vector @ other / np.linalg.norm(vector) / np.linalg.norm(other), j))
        allowed = [int(targets[j]) for _, j in others]
        for _, j in sorted(others)[:5]:
            votes[i, targets[j]] += 1 / allowed.count(int(targets[j]))
    votes /= votes.sum(1, keepdims=True)
    found = knn_probe(features, targets, groups)
    assert found["balanced accuracy"].value == pytest.approx(balanced_accuracy_score(targets, votes.argmax(1)))
    assert found["AUC"].value == pytest.approx(roc_auc_score(targets, votes, multi_class="ovr"))


@pytest.mark.parametrize(("subjects", "scans"), [((6, 6), 1), ((5, 5), 4), ((25, 25), 2), ((50, 50), 1), ((20, 60), 1)])
def test_neighbours_find_random_targets_as_often_as_chance(subjects, scans):
    found = {"AUC": [], BALANCED_ACCURACY: []}
    for seed in range(60):
        generator = np.random.default_rng(seed)
        groups = np.arange(sum(subjects)).repeat(scans).astype(str)
        targets = generator.permutation(np.repeat([0, 1], subjects)).repeat(scans)
        features = generator.normal(size=(len(groups), 8)).astype(np.float32)
        for name, of in knn_probe(features, targets, groups).items():
            found[name].append(of.value)
    for values in found.values():
        assert abs(np.mean(values) - 0.5) < 3 * np.std(values) / len(values) ** 0.5


def test_features_that_are_all_alike_tell_nothing_of_their_class():
    targets = np.random.default_rng(0).permutation(np.repeat([0, 1], 20))
    found = knn_probe(np.ones((40, 8), dtype=np.float32), targets, np.arange(40).astype(str))
    assert abs(found["AUC"].value - 0.5) < 0.1


def test_a_class_of_few_is_not_outvoted():
    features = np.repeat(np.eye(2), [20, 3], axis=0) + np.random.default_rng(0).normal(0, 0.05, size=(23, 2))
    targets = np.repeat([0, 1], [20, 3])
    found = knn_probe(features.astype(np.float32), targets, np.arange(23).astype(str))
    assert found["balanced accuracy"].value == 1.0


def test_tissues_are_scored_by_dice_and_balanced_accuracy():
    features, targets, groups = samples(num_subjects=12, scans=20, num_classes=3)
    guessed, wide = np.zeros(len(targets)), features.astype(np.float64)
    for train, test in folds(targets, groups, 4):
        guessed[test] = classifier(0.1).fit(wide[train], targets[train]).predict(wide[test])
    found = tissue_probe(features, targets, groups, folds=5)
    assert found["balanced accuracy"].value == pytest.approx(balanced_accuracy_score(targets, guessed))
    assert found["Dice"].value == pytest.approx(f1_score(targets, guessed, average="macro"))


def test_the_chance_of_a_dice_is_that_of_guessing_each_class_as_often():
    generator = np.random.default_rng(0)
    targets = (np.arange(20000) % 10 == 0).astype(np.int64)
    groups = np.arange(len(targets)).astype(str)
    found = tissue_probe(generator.normal(size=(400, 2)).astype(np.float32), targets[:400], groups[:400])
    wanted = f1_score(targets, generator.integers(2, size=len(targets)), average="macro")
    assert found["Dice"].chance == pytest.approx(wanted, abs=0.01)


@pytest.mark.parametrize("probe", [linear_probe, knn_probe, tissue_probe])
def test_a_draw_of_subjects_without_a_class_scores_the_other_and_has_no_area(probe):
    found = probe(*samples(num_subjects=4, scans=3, dim=2, signal=40.0))
    other = next(name for name in found if name != "balanced accuracy")
    assert set(found["balanced accuracy"].draws()) == {1.0}
    drawn = found[other].draws()
    assert np.isnan(drawn).any() == (other == "AUC")
    assert set(drawn[~np.isnan(drawn)]) == {1.0}
    assert found[other].error == 0  # classes that are told apart in every draw are told apart


@pytest.mark.parametrize(
    ("targets", "groups", "message"),
    [
        ([1, 1, 1], "abc", "every case is of class 1"),
        ([], "", "no case has it"),
        ([0, 0, 1, 1], "abcc", "each class needs two subjects.* but class 1 has 1"),
    ],
)
def test_what_cannot_be_learned_is_one_clear_line(targets, groups, message):
    targets, groups = np.array(targets, dtype=np.int64), np.array(list(groups))
    with pytest.raises(ValueError, match=message):
        linear_probe(np.zeros((len(targets), 2), dtype=np.float32), targets, groups)
    assert "\n" not in probe_problem(targets, groups)


def test_two_subjects_a_class_are_enough():
    features, targets, groups = samples(num_subjects=4, scans=1, signal=20.0)
    assert linear_probe(features, targets, groups)["AUC"].value >= 0.5


def transferable(seed, subjects, classes=3, tokens=30, shift=0.0, prefix="s"):
    """Tokens of which the first features tell their class; those of the first class may be shifted for all."""
    generator = np.random.default_rng(seed)
    labels = np.tile(np.repeat(np.arange(1, classes + 1), tokens // classes), subjects)
    features = np.concatenate([10 * np.eye(classes)[labels - 1], generator.normal(size=(len(labels), 3))], axis=1)
    features[:, 0] += shift
    return LabelledTokens(features, labels, np.repeat([f"{prefix}{number}" for number in range(subjects)], tokens))


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("prefix", ["s", "others"])
def test_a_probe_is_transferred_whole_where_features_are_alike_and_not_where_they_moved(heads, prefix):
    fitted = transferable(0, 6)
    alike = transfer_probe(fitted, transferable(1, 6, prefix=prefix), heads=heads)[BALANCED_ACCURACY]
    moved = transfer_probe(fitted, transferable(1, 6, shift=100.0, prefix=prefix), heads=heads)[BALANCED_ACCURACY]
    assert (alike.value, alike.error, alike.chance) == (1.0, 0.0, pytest.approx(1 / 3))
    assert moved.value == pytest.approx(1 / 3)


@pytest.mark.parametrize(("heads", "fits"), [(1, [1, 1, 1, 1] * 2), (2, [2, 2] * 2), (3, [3] * 2), (24, [4] * 2)])
def test_no_subject_is_on_both_sides_of_a_transfer(heads, fits, monkeypatch):
    used = []

    def fit(train, targets, test, inverse_penalty):
        used.append((set(train[:, 0]), set(test[:, 0])))
        return np.ones((len(test), len(np.unique(targets))))

    monkeypatch.setattr("voxelwave.evaluation.probing._logistic", fit)
    tokens = transferable(0, 8)
    tokens = tokens._replace(features=np.repeat(np.arange(8.0), 30)[:, None])  # whose it is
    transfer_probe(tokens, tokens, heads=heads)
    assert [len(train) for train, _ in used] == fits
    assert not any(train & test for train, test in used)
    assert set.union(*(test for _, test in used)) == set(range(8))


def test_what_cannot_be_transferred_is_said():
    one, several = transferable(0, 1), transferable(0, 4)
    assert transfer_problem(one, one) == "two subjects are needed, one to learn from and one to be asked"
    assert transfer_problem(one, transferable(0, 1, prefix="other")) is None
    assert transfer_problem(several, transferable(0, 4, classes=1)).startswith("two tissues are needed")
    with pytest.raises(ValueError, match="two subjects are needed"):
        transfer_probe(one, one, heads=1)


def test_every_classifier_of_a_transfer_counts_once(monkeypatch):
    """Three heads to learn from in a half: three classifiers, one of which is always right and two are never."""
    fitted, asked = transferable(0, 6), transferable(1, 6)
    calls = []

    def told(train, labels, test, penalty):
        calls.append(len(test))
        return np.roll(test[:, :3], len(calls) % 3 != 1, axis=1)

    monkeypatch.setattr("voxelwave.evaluation.probing._logistic", told)
    found = transfer_probe(fitted, asked, heads=1)[BALANCED_ACCURACY].value
    assert len(calls) == 6
    assert found == pytest.approx(1 / 3)
