"""Fine-tuning that was interrupted goes on to what the uninterrupted run computes; a complete run is left alone."""

import shutil
from functools import cache

import nibabel
import numpy as np
import pytest
import torch

from support.finetuning_runs import (
    CLASSIFICATION,
    QUIET,
    SEGMENTATION,
    config_of,
    exact,
    export_backbone,
    list_cases,
    records,
    results,
    rows,
    run,
    weights,
)
from support.stopping import stop_after
from voxelwave.data.listing.cases import find_cases
from voxelwave.data.listing.splits import split_cases
from voxelwave.errors import InputError
from voxelwave.jobs.finetune.run import finetune, patience_is_over
from voxelwave.ops.tables import as_csv


@pytest.fixture(scope="module")
def begun(heads, backbone, tmp_path_factory):
    """Return a run of a kind of task that is not yet trained."""
    out = tmp_path_factory.mktemp("runs")
    cases = list_cases(heads, out)
    augment = {"mri": {"flip": {}, "rotate90": {}, "gamma": {}, "noise": {}}}

    def configure(kind, name):
        task = SEGMENTATION if kind == "segmentation" else CLASSIFICATION
        more = {"data": {"augment": augment}, "backbone": {"path": str(backbone), "layer_decay": 0.5}}
        return config_of(cases, out, f"{kind}_{name}", task, **more)

    return configure


@pytest.fixture(scope="module")
def uninterrupted(begun):
    """Return the folder of a run of a kind of task, which is made once."""
    return cache(lambda kind: run(begun(kind, "whole")))


@pytest.mark.parametrize(
    ("kind", "stop"), [("segmentation", 1), ("segmentation", 3), ("segmentation", 5), ("classification", 2)]
)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(begun, uninterrupted, kind, stop):
    whole, parts = uninterrupted(kind), begun(kind, f"stopped_at_{stop}")
    assert not finetune(parts, console=QUIET, should_stop=stop_after(stop))
    assert len(records(parts.run_folder())) == stop
    assert not (parts.run_folder() / "results.json").exists()
    folder = run(parts, resume=True)
    assert exact(folder) == exact(whole)
    for name in ("last.pth", "best_model.pth"):
        ours, theirs = weights(folder, name), weights(whole, name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert (folder / "results.csv").read_text() == (whole / "results.csv").read_text()
    assert results(folder) == results(whole)


@pytest.mark.parametrize("patience", [1, 2, 3, None])
def test_patience_is_over_when_the_best_lies_so_many_validations_back(patience):
    generator = np.random.default_rng(0)
    for _ in range(50):
        scores = generator.integers(0, 5, generator.integers(0, 8)).tolist()
        lines = [line for score in scores for line in ({"loss": 1.0}, {"validation_dice": score})]
        since_best = len(scores) - 1 - scores.index(max(scores)) if scores else 0
        expected = patience is not None and since_best >= patience
        assert patience_is_over(lines, "validation_dice", patience) == expected


def test_early_stopping_ends_the_run_as_complete_and_survives_an_interruption(heads, tmp_path, monkeypatch):
    scores = {1: 0.3, 2: 0.5, 3: 0.5, 4: 0.1}
    validated = "voxelwave.jobs.finetune.segmentation.Segmentation.validate"
    more = {"training": {"max_steps": 40, "validate_every_steps": 1, "patience": 2}}

    def counting(start):
        number = iter(range(start, 100))
        return lambda self, model, cases: {"validation_dice": scores[next(number)]}

    monkeypatch.setattr(validated, counting(1))
    whole = run(config_of(heads, tmp_path, "whole", **more))
    assert len(records(whole)) == 4
    assert results(whole)["steps"] == 4
    assert results(whole)["best_step"] == 2
    monkeypatch.setattr(validated, counting(1))
    parts = config_of(heads, tmp_path, "parts", **more)
    assert not finetune(parts, should_stop=stop_after(3))
    monkeypatch.setattr(validated, counting(4))
    assert exact(run(parts, resume=True)) == exact(whole)
    # Asked once more, nothing is trained.
    assert exact(run(parts, resume=True)) == exact(whole)


def test_a_complete_run_is_neither_overwritten_nor_done_again(heads, tmp_path):
    config = config_of(heads, tmp_path, "twice")
    folder = run(config)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(ValueError, match="holds a run already: go on with --resume"):
        finetune(config)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    run(config, resume=True)
    assert (folder / "results.json").stat().st_mtime_ns == before["results.json"]
    config.training.max_steps = 7
    run(config, resume=True)
    assert results(folder)["steps"] == 7
    assert len(records(folder)) == 7


def test_resume_needs_no_backbone_and_refuses_what_would_change_the_finished_steps(heads, tmp_path):
    cases = list_cases(heads, tmp_path)
    path = export_backbone(tmp_path / "mine")
    config = config_of(cases, tmp_path, "changed", backbone={"path": str(path)}, data={"spacing_mm": "backbone"})
    assert not finetune(config, should_stop=stop_after(2))
    for file in path.iterdir():
        file.unlink()
    config.training.batch_size = 1
    with pytest.raises(ValueError, match=r"cannot resume .*'training.batch_size' was 2 and is 1 now"):
        finetune(config, resume=True)
    config.training.batch_size = 2
    lines = cases.read_text().splitlines()
    cases.write_text("\n".join([*lines[:-1], lines[-1].replace("mri_", "other_")]) + "\n")
    with pytest.raises(ValueError, match=r"cannot resume .*its cases were"):
        finetune(config, resume=True)
    cases.write_text("\n".join(lines) + "\n")
    run(config, resume=True)


@pytest.mark.parametrize(("kind", "changed"), [("segmentation", "label"), ("classification", "target")])
def test_resume_refuses_a_case_whose_label_map_or_target_has_changed_and_names_it(heads, tmp_path, kind, changed):
    shutil.copytree(heads, tmp_path / "heads")
    cases = list_cases(tmp_path / "heads", tmp_path)
    config = config_of(cases, tmp_path, kind, SEGMENTATION if kind == "segmentation" else CLASSIFICATION)
    assert not finetune(config, console=QUIET, should_stop=stop_after(2))
    trained = split_cases(find_cases(cases, modality="mri"), folds=2, fold=0, seed=0).train
    if changed == "label":
        path = trained[0].label
        image = nibabel.load(path)
        labels = np.asarray(image.dataobj).copy()
        labels[0, 0, 0] += 1
        nibabel.Nifti1Image(labels, None, image.header).to_filename(path)
    else:
        listed, target = rows(cases), CLASSIFICATION["targets"][0]
        for row in listed:
            if any(case.image.samefile(cases.parent / row["image"]) for case in trained):
                row[target] = str(1 - int(row[target]))
        cases.write_text(as_csv(list(listed[0]), listed))
    with pytest.raises(InputError, match=f"{trained[0].image.name} has changed since the run was begun"):
        finetune(config, resume=True, console=QUIET)
