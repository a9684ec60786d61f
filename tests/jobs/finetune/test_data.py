from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from voxelwave.backbones.waveformer import WaveFormer3D
from voxelwave.data.listing.cases import Case, find_cases, named_apart
from voxelwave.data.listing.splits import split_cases
from voxelwave.downstream.features import FeaturePyramid
from voxelwave.downstream.scan_reader import ScanReader
from voxelwave.errors import InputError
from voxelwave.jobs.finetune import data
from voxelwave.jobs.finetune.classification import Classification
from voxelwave.jobs.finetune.config import check_finetune_config
from voxelwave.jobs.finetune.data import FoldData
from voxelwave.jobs.finetune.segmentation import Segmentation

SEGMENTATION = {"name": "segmentation", "classes": {"brain": ["6-11"], "vessels": 12}, "other_labels": "background"}
CLASSIFICATION = {"name": "classification", "targets": ["lesion", "aneurysm"]}
CPU = torch.device("cpu")


def task_of(task, spacing_mm=None, **data):
    data |= {"cases": "x", "crop_size": [16] * 3, "spacing_mm": spacing_mm or "native"}
    config = check_finetune_config({"task": task, "data": data})
    features = FeaturePyramid(
        WaveFormer3D((1, 3), patch_size=4, embed_dim=12, depth=1, num_heads=2),
        description={"preprocessing": {"spacing_mm": spacing_mm}},
    )
    kind = Segmentation if task["name"] == "segmentation" else Classification
    return kind(config.task, config.data, ScanReader(features))


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture
def fold(heads, kept):
    """Make the data of a fold of the heads."""

    def make(task=SEGMENTATION, modality="mri", folds=1, seed=0, augment=None, batch_size=2, **data):
        cases = find_cases(heads, modality=modality)
        names = {case.modality for case in cases}
        return FoldData(
            task_of(task, **data),
            split_cases(cases, folds=folds, seed=seed),
            batch_size=batch_size,
            seed=seed,
            augment=dict.fromkeys(names, augment or {}),
            kept=kept,
        )

    return make


def test_a_batch_follows_from_its_step_alone(fold):
    of = fold()
    stream = list(of.batches(0, 7))
    (alone,) = fold().batches(5, 6)
    assert torch.equal(alone.volume, stream[5].volume)
    assert torch.equal(alone.target, stream[5].target)
    assert alone.files == stream[5].files
    assert not torch.equal(stream[4].volume, alone.volume)
    assert not torch.equal(next(iter(fold(seed=1).batches(5, 6))).volume, alone.volume)


def test_every_case_comes_once_before_any_comes_again(fold):
    files = [file for batch in fold(batch_size=1).batches(0, 10) for file in batch.files]
    assert len(set(files[:5])) == 5
    assert sorted(files[:5]) == sorted(files[5:])


def test_batches_of_two_modalities_take_turns(fold):
    batches = list(fold(CLASSIFICATION, modality="").batches(0, 4))
    assert [batch.modality for batch in batches] == ["ct", "mri"] * 2 or ["mri", "ct"] * 2
    assert {batch.volume.shape[1] for batch in batches if batch.modality == "ct"} == {3}
    assert {batch.volume.shape[1] for batch in batches if batch.modality == "mri"} == {1}


def test_labels_are_moved_as_their_voxels_are_and_by_nothing_else(fold):
    spatial, intensity = {"flip": {}, "rotate90": {}}, {"gamma": {}, "noise": {}}
    batch = next(iter(fold().batches(0, 1)))
    plain = fold().augmented(batch, 0, CPU)
    assert torch.equal(plain[0], batch.volume)
    turned, moved = fold(augment=spatial).augmented(batch, 0, CPU)
    assert not torch.equal(moved, batch.target)
    both, same = fold(augment={**spatial, **intensity}).augmented(batch, 0, CPU)
    assert torch.equal(same, moved)
    assert not torch.equal(both, turned)
    _, still = fold(augment=intensity).augmented(batch, 0, CPU)
    assert torch.equal(still, batch.target)
    # Where the voxels went, the labels went: each image value keeps its label.
    for image, labels, new_image, new_labels in zip(batch.volume, batch.target, turned, moved, strict=True):
        before = sorted(zip(image.flatten().tolist(), labels.flatten().tolist(), strict=True))
        after = sorted(zip(new_image.flatten().tolist(), new_labels.flatten().tolist(), strict=True))
        assert before == after


def test_labels_lie_on_the_image_at_the_working_spacing(fold, heads):
    of = fold(spacing_mm=2.0)
    for held in of.train:
        labels, volume = held.content.labels, held.content.volume
        assert labels.shape == volume.shape[1:] == (16, 16, 16)
        np.testing.assert_allclose(np.abs(np.diag(held.affine)[:3]), 2.0)
    finest = fold().train[0].content
    coarse = of.train[0].content
    for label in (1, 2):
        share = float((finest.labels == label).float().mean())
        assert float((coarse.labels == label).float().mean()) == pytest.approx(share, abs=0.03)


def test_what_was_read_once_is_shared_and_read_anew_where_it_would_differ(heads, kept, monkeypatch):
    def make(task, seed=0):
        cases = find_cases(heads, modality="mri")
        return FoldData(
            task, split_cases(cases, folds=2, seed=seed), batch_size=1, seed=seed, augment={"mri": {}}, kept=kept
        )

    first = make(task_of(SEGMENTATION))
    reads = []
    hold = Segmentation.hold
    monkeypatch.setattr(Segmentation, "hold", lambda self, case: reads.append(case) or hold(self, case))
    again = make(task_of(SEGMENTATION), seed=1)
    assert not reads
    contents = {id(held.content) for held in (*first.train, *first.validation)}
    assert {id(held.content) for held in (*again.train, *again.validation)} == contents
    make(task_of({**SEGMENTATION, "classes": {"brain": ["6-10"]}}))
    assert len(reads) == 5


def test_names_take_as_many_folders_as_tell_them_apart():
    def case(*parts):
        return Case(name=parts[-1], image=Path("/data", *parts).with_suffix(".nii"), modality="mri", subject="s")

    def named(*cases):
        return [of.name for of in named_apart([case(*parts) for parts in cases])]

    assert named(("a", "x"), ("b", "y")) == ["x", "y"]
    assert named(("a", "T1"), ("b", "T1")) == ["a_T1", "b_T1"]
    assert named(("a", "s", "T1"), ("b", "s", "T1"), ("b", "r", "T1")) == ["a_s_T1", "b_s_T1", "b_r_T1"]
    # No folders tell these apart.
    assert named(("a", "T1"), ("a", "T1"), ("b", "T2")) == ["T1", "T1-2", "T2"]
    assert named(("a", "b_T1"), ("a_b", "T1"), ("c", "T1")) == ["b_T1", "T1", "T1-2"]
    # What one pair leaves open costs the others nothing.
    assert named(("a", "T1"), ("a", "T1"), ("b", "T1"), ("c", "T1")) == ["a_T1", "a_T1-2", "b_T1", "c_T1"]
    # A name leads nowhere and is one that a file can have.
    one, other = named(("s", "T1"), ("data", "s", "T1"))
    assert one != other
    assert "/" not in one + other
    long = ["x" * 90, "y" * 90, "z" * 90]
    assert all(len(name) < 240 for name in named(("a", *long, "T1"), ("b", *long, "T1")))


def test_targets_are_those_of_the_list_and_unknown_ones_are_masked(heads):
    task = task_of(CLASSIFICATION)
    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0]], requires_grad=True)
    target = torch.tensor([[1.0, torch.nan], [0.0, torch.nan]])
    loss, logs = task.loss(logits, target)
    p = logits.sigmoid()
    expected = -(p[0, 0].log() + (1 - p[1, 0]).log()) / 2
    torch.testing.assert_close(loss, expected)
    assert logs["loss"] == loss
    loss.backward()
    assert logits.grad[:, 1].tolist() == [0, 0]
    nothing, _ = task.loss(logits, torch.full((2, 2), torch.nan))
    assert nothing.item() == 0
    case = find_cases(heads, modality="mri")[0]
    _, drawn = task.sample(task.hold(case), torch.Generator())
    assert drawn.tolist() == [case.targets["lesion"], case.targets["aneurysm"]]


def test_the_loss_of_a_segmentation_is_dice_and_cross_entropy_in_plain_words():
    task = task_of(SEGMENTATION)
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 4, 4, 4), torch.randint(0, 3, (2, 1, 4, 4, 4), dtype=torch.uint8)
    probability = logits.softmax(1)
    entropy = -probability.gather(1, target.long()).log().mean()
    dice = 0.0
    for label in range(3):
        true = (target[:, 0] == label).float()
        both = (probability[:, label] * true).sum()
        dice += 1 - (2 * both + 1e-5) / (probability[:, label].sum() + true.sum() + 1e-5)
    torch.testing.assert_close(task.loss(logits, target).loss, entropy + dice / 3, rtol=1e-4, atol=1e-5)
    focal = task_of({**SEGMENTATION, "loss": "dice_focal"}).loss(logits, target).loss
    assert 0 < float(focal) < float(entropy + dice / 3)


@pytest.mark.parametrize("task", [SEGMENTATION, CLASSIFICATION], ids=lambda task: task["name"])
def test_cases_that_processes_read_are_those_that_are_read_here(heads, tmp_path, monkeypatch, task):
    cases = find_cases(heads, modality="ct")[:3]
    gone = replace(cases[1], name="gone", image=tmp_path / "gone.nii")
    (tmp_path / "gone.nii").write_bytes(b"nothing")
    asked, how = [*cases, gone], task_of(task)
    here = dict(data.read_cases(how, asked))
    monkeypatch.setattr(data, "WORTH_PROCESSES_S", 0)
    monkeypatch.setattr(data, "checked_workers", lambda _: 2)
    apart = dict(data.read_cases(how, asked))
    assert apart.keys() == here.keys() == set(range(4))
    assert "gone.nii" in here[3]
    assert apart[3] == here[3]
    for number, case in enumerate(cases):
        one, other = apart[number], here[number]
        assert one.case == other.case == case
        assert np.array_equal(one.affine, other.affine)
        if task is CLASSIFICATION:
            assert torch.equal(one.content, other.content)
        else:
            assert torch.equal(one.content.volume, other.content.volume)
            assert torch.equal(one.content.labels, other.content.labels)
            assert one.content.present == other.content.present
            assert repr(one.content.source) == repr(other.content.source)


def test_what_is_wrong_with_cases_is_said_in_their_order_wherever_they_are_read(heads, tmp_path, monkeypatch):
    names = ["a.nii", "b.nii", "c.nii"]
    (tmp_path / "list.csv").write_text("\n".join(["image,label,modality", *(f"{n},{n},mri" for n in names)]) + "\n")
    for name in names:
        (tmp_path / name).write_bytes(b"nothing")
    monkeypatch.setattr(
        data, "read_cases", lambda task, cases: [(n, f"bad {cases[n].name}") for n in (2, 0, 1)[: len(cases)]]
    )
    split = split_cases(find_cases(tmp_path / "list.csv", modality="mri"), folds=1, seed=0)
    with pytest.raises(InputError, match=r"bad a \(and 2 more: bad b; bad c\)"):
        FoldData(task_of(SEGMENTATION), split, batch_size=1, seed=0, augment={"mri": {}}, kept={})


def test_cases_that_take_more_memory_than_there_is_are_told_of_in_time(heads, monkeypatch, caplog):
    monkeypatch.setattr(data, "TELLING", 2)
    split = split_cases(find_cases(heads, modality="mri"), folds=1, seed=0)
    for usable, said in (
        (5 * 3 * 32**3 + 1, ""),
        (5 * 3 * 32**3 - 1, "the 5 cases are held in memory and take about 0.000492 GB"),
    ):
        caplog.clear()
        monkeypatch.setattr(data, "usable_memory", lambda usable=usable: usable)
        FoldData(task_of(SEGMENTATION), split, batch_size=1, seed=0, augment={"mri": {}}, kept={})
        assert said in caplog.text
        assert bool(said) == bool(caplog.text)
