"""What a user may get wrong: each is one line, before anything is written."""

import json
import re

import nibabel as nib
import numpy as np
import pytest
import yaml

from support.command import error_of, voxelwave
from support.finetuning_runs import CLASSIFICATION, SEGMENTATION, config_of, export_backbone, list_cases, run
from voxelwave.data.listing.cases import find_cases
from voxelwave.engine.checkpoint import load_checkpoint, save_checkpoint
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.finetune.run import finetune


def refused(config, message):
    with pytest.raises(ValueError, match=message) as caught:
        finetune(config, console=Console(quiet=True))
    assert "\n" not in str(caught.value)
    assert not config.run_folder().exists()


def with_label(heads, folder, change, number=1):
    """A list of the heads, where `change` makes the label map of one from array and affine."""
    cases = find_cases(heads, modality="mri")
    lines = ["image,label,subject,modality"]
    for place, case in enumerate(cases):
        label = case.label
        if place == number:
            given = nib.load(label)
            array, affine = change(np.asarray(given.dataobj).copy(), given.affine.copy())
            label = folder / "changed_labels.nii.gz"
            nib.save(nib.Nifti1Image(array, affine), label)
        lines.append(f"{case.image},{label},{case.subject},mri")
    (folder / "cases.csv").write_text("\n".join(lines) + "\n")
    return folder


def with_value(array, affine):
    array[3, 3, 3] = 77
    array[4, 4, 4] = 99
    return array, affine


def cut(array, affine):
    return array[:-2], affine


def shifted(array, affine):
    affine[0, 3] += 7.5
    return array, affine


def softened(array, affine):
    return (array / 3).astype(np.float32), affine


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            with_value,
            "label map .*changed_labels.nii.gz: its values 77, 99 are in no class: add them to task.classes, or",
        ),
        (cut, "changed_labels.nii.gz: it has 30 × 32 × 32 voxels and its image 32 × 32 × 32"),
        (shifted, "changed_labels.nii.gz: it lies up to 7.5 mm from its image in space.*bring it onto the grid of"),
        (softened, "changed_labels.nii.gz: its values are not whole numbers"),
    ],
)
def test_a_label_map_that_does_not_fit(heads, tmp_path, change, message):
    every = {"brain": ["6-11"], "rest": ["1-5", "12-20"]}
    task = {**SEGMENTATION, "classes": every, "other_labels": "error"}
    for folds in (1, 2, 5):  # whatever part the case is in
        refused(config_of(with_label(heads, tmp_path, change), tmp_path, "run", task, data={"folds": folds}), message)


def test_a_case_without_label_map(heads, tmp_path):
    path = list_cases(heads, tmp_path)
    lines = path.read_text().splitlines()
    cells = lines[2].split(",")
    path.write_text("\n".join([*lines[:2], ",".join([cells[0], "", *cells[2:]]), *lines[3:]]) + "\n")
    refused(config_of(path, tmp_path, "run"), r"case 'head_\w+' has no label map: name it in the column 'label'")


def test_classes_that_no_training_case_has(heads, tmp_path):
    classes = {"classes": {"brain": ["6-11"], "thing": [50, "60-70"]}}
    message = r"training cases? .*hold no voxel of class 'thing' \(label values 50, 60-70\): .*or leave the class out"
    refused(config_of(heads, tmp_path, "run", {**SEGMENTATION, **classes}), message)
    nothing = {**SEGMENTATION, "classes": {"thing": 50}}
    refused(config_of(heads, tmp_path, "run", nothing), "hold no voxel of any class, only background")
    one = {"num_train_subjects": 1}
    refused(config_of(heads, tmp_path, "run", nothing, data=one), "the training case 'head_.*' hold no voxel of any")


def test_validation_cases_that_hold_no_class(heads, tmp_path):
    def without(array, affine):
        return np.zeros_like(array), affine

    path = with_label(heads, tmp_path, without) / "cases.csv"
    lines = path.read_text().splitlines()
    folds = ["fold", *(str(int(number != 2)) for number in range(1, len(lines)))]
    path.write_text("\n".join(f"{line},{fold}" for line, fold in zip(lines, folds, strict=True)) + "\n")
    message = "the 1 validation cases of this fold hold no voxel of any class: take other data.folds or another"
    refused(config_of(tmp_path, tmp_path, "run", data={"folds": 2, "fold": 0}), message)


def changed_targets(heads, folder, change):
    path = list_cases(heads, folder)
    head, *lines = path.read_text().splitlines()
    path.write_text("\n".join([head, *(",".join(change(n, line.split(","))) for n, line in enumerate(lines))]) + "\n")
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda n, cells: [*cells[:5], "1", cells[6]],
            "target 'present' is only 1 in the . training cases of this fold",
        ),
        (lambda n, cells: [*cells[:6], ""], "target 'fine' is known of none of the 5 cases; their list has: present"),
        (lambda n, cells: [*cells[:5], "3", cells[6]], "target 'present' of case 'head_.*' is 3: a target is 0 or 1"),
        (
            lambda n, cells: [*cells[:5], cells[5] if n > 2 else "0", cells[6]],
            "target 'present' is only 0 in the . (validation|training) cases of this fold: take other data.folds",
        ),
    ],
)
def test_targets_that_cannot_be_learnt(heads, tmp_path, change, message):
    refused(config_of(changed_targets(heads, tmp_path, change), tmp_path, "run", CLASSIFICATION), message)


def test_cases_of_which_no_target_is_known_are_left_out_and_said_to_be(heads, tmp_path):
    path = changed_targets(heads, tmp_path, lambda n, cells: cells if n else [*cells[:5], "", ""])
    console = Console(record=True, quiet=False, file=(tmp_path / "said.txt").open("w"), width=200)
    config = config_of(path, tmp_path, "run", CLASSIFICATION, data={"folds": 1})
    with console.file:
        assert finetune(config, console=console)
        assert (
            "cases: 4 training, 0 validation, 0 test; 1 left out, none of whose targets is known"
            in console.export_text()
        )


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"folds": 9}}, "9 folds need as many subjects, got 5"),
        ({"data": {"folds": 5, "num_train_subjects": 5}}, "num_train_subjects is 5: fold 0 of 5 leaves 1…4 of them"),
        (
            {"data": {"crop_size": [16, 18, 16]}},
            r"key 'data.crop_size': \[16, 18, 16\] is not divisible by the backbone",
        ),
        ({"data": {"cases": "nowhere"}}, "nowhere is neither a list of cases"),
        ({"data": {"modality": "ct", "modalities": {"ct": {"windows_hu": [[40, 0]] * 3}}}}, "modality 'ct' cannot be"),
        ({"backbone": {"path": "nowhere"}}, "no checkpoint at nowhere"),
        ({"backbone": {"scratch": {"embed_dim": 12, "num_heads": 5}}}, "not divisible by num_heads 5"),
        ({"training": {"device": "cpu", "precision": "fp16"}}, "fp16 needs a GPU"),
        ({"data": {"augment": {"mri": {"noise": {"std": -1}}}}}, "augmentation 'noise' cannot be built"),
    ],
)
def test_settings_that_cannot_work(heads, tmp_path, sections, message):
    refused(config_of(heads, tmp_path, "run", **sections), message)


def test_a_file_that_is_no_backbone_of_a_known_architecture(heads, tmp_path):
    path = export_backbone(tmp_path / "other")
    description = json.loads((path / "backbone.json").read_text())
    description["architecture"]["name"] = "resnet"
    del description["description_sha256"]
    (path / "backbone.json").write_text(json.dumps(description))
    refused(config_of(heads, tmp_path, "run", backbone={"path": str(path)}), "unknown backbone 'resnet'")


def test_an_image_that_cannot_be_read(heads, tmp_path):
    path = list_cases(heads, tmp_path)
    (tmp_path / "page.nii.gz").write_text("<html>")
    lines = path.read_text().splitlines()
    image = lines[3].split(",")[0]
    path.write_text("\n".join(lines).replace(image, str(tmp_path / "page.nii.gz")) + "\n")
    refused(config_of(path, tmp_path, "run"), r"image .*page.nii.gz: ")
    (tmp_path / "other.nii.gz").write_text("<html>")
    path.write_text(path.read_text().replace(lines[1].split(",")[0], str(tmp_path / "other.nii.gz")))
    refused(config_of(path, tmp_path, "run"), r"image .*\.nii.gz: .*\(and 1 more: image .*\.nii.gz: ")


def test_whatever_is_wrong_with_a_fold_is_said_before_any_is_trained(heads, tmp_path):
    change = lambda n, cells: [*cells[:5], cells[5] if n > 2 else "0", cells[6]]  # noqa: E731
    path = changed_targets(heads, tmp_path, change)
    refused(config_of(path, tmp_path, "run", CLASSIFICATION, data={"fold": "all"}), "target 'present' is only 0")


def test_a_folder_with_another_kind_of_run_is_left_alone(heads, tmp_path):
    config = config_of(heads, tmp_path, "run", training={"max_steps": 1})
    folder = run(config)
    state = load_checkpoint(folder / "last.pth")
    save_checkpoint(folder / "last.pth", {key: of for key, of in state.items() if key != "description"})
    with pytest.raises(ValueError, match="holds a run of another command"):
        finetune(config, resume=True)


def test_the_command_takes_overrides_and_says_what_is_wrong_in_one_line(heads, tmp_path):
    config = config_of(heads, tmp_path, "command", training={"max_steps": 1})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))

    def command(*arguments):
        return voxelwave("finetune", path, "--set", *arguments)

    assert "key 'data.fold' is 0…1 or all" in error_of(command("data.fold=7"))
    ended = command("run.name=told")
    assert ended.code == 0
    assert re.search(r"validation, [23] cases: mean dice", ended.out)
    assert (tmp_path / "told" / "results.json").exists()
    assert "holds a run already" in error_of(command("run.name=told"))
    assert command("run.name=told", "--resume").code == 0
