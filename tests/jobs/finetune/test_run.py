"""What a fine-tuning run leaves and computes."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

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
from voxelwave.data.listing.cases import find_cases
from voxelwave.downstream.finetuned import load_finetuned
from voxelwave.downstream.load_backbone import load_backbone
from voxelwave.errors import DivergedError
from voxelwave.jobs.finetune.config import check_finetune_config, load_finetune_config
from voxelwave.jobs.finetune.run import finetune
from voxelwave.jobs.prepare.run import Preparer
from voxelwave.jobs.prepare.settings import preparation
from voxelwave.jobs.pretrain.config import check_config
from voxelwave.jobs.pretrain.run import pretrain

FILES = {
    *(
        "config.yaml",
        "metrics.jsonl",
        "history.csv",
        "last.pth",
        "last.previous.pth",
        "best_model.pth",
        "load_report.json",
    ),
    *("model.safetensors", "model.json", "results.json", "results.csv"),
}


@pytest.fixture(scope="module")
def segmented(heads, backbone, tmp_path_factory):
    """A finished run with everything that a run can leave."""
    config = config_of(
        heads,
        tmp_path_factory.mktemp("runs"),
        "seg",
        {**SEGMENTATION, "hausdorff": True},
        run={"tensorboard": True, "figures": True},
        backbone={"path": str(backbone), "layer_decay": 0.7},
        data={"spacing_mm": "backbone"},
        training={"max_steps": 40, "validate_every_steps": 20, "learning_rate": 5e-3},
    )
    return run(config)


def test_a_segmentation_leaves_what_was_promised(segmented):
    assert {path.name for path in segmented.iterdir()} == FILES | {"tensorboard", "figures", "predictions"}
    assert {path.name for path in (segmented / "figures").iterdir()} == {"losses.png", "predictions.png"}


def test_every_step_has_a_record_and_every_twentieth_a_validation(segmented):
    lines = records(segmented)
    assert [line["step"] for line in lines] == list(range(40))
    assert [line["step"] for line in lines if "validation_dice" in line] == [19, 39]


def test_the_history_has_a_row_for_each_validation(segmented):
    lines = records(segmented)
    written = [float(row["validation_dice"]) for row in rows(segmented / "history.csv")]
    assert written == [lines[19]["validation_dice"], lines[39]["validation_dice"]]


def test_a_segmentation_learns(segmented):
    lines = records(segmented)
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert results(segmented)["validation"]["dice"]["brain"] > 0.5


def test_results_say_how_long_and_on_whom_was_trained(segmented):
    found = results(segmented)
    assert (found["steps"], found["trained_on"]["subjects"] + found["validation"]["cases"]) == (40, 5)


def test_the_configuration_that_is_left_names_what_the_backbone_decided(segmented):
    resolved = load_finetune_config(segmented / "config.yaml")
    assert resolved.data.spacing_mm == 2.0
    assert resolved.data.modalities["mri"] == {"percentiles": [1, 99]}


@pytest.fixture(scope="module")
def predicted(segmented, heads):
    """Each row of the scores, with the image, the label map that was written and the true one."""
    cases = {case.name: case for case in find_cases(heads)}
    return [
        (
            row,
            nib.load(cases[row["case"]].image),
            nib.load(segmented / "predictions" / f"{row['case']}.nii.gz"),
            np.asarray(nib.load(cases[row["case"]].label).dataobj),
        )
        for row in rows(segmented / "results.csv")
    ]


def test_label_maps_lie_in_the_space_of_their_images_and_their_values_have_names(segmented, predicted):
    for _, image, written, _ in predicted:
        assert written.shape == image.shape
        np.testing.assert_array_equal(written.affine, image.affine)
    legend = json.loads((segmented / "predictions" / "labels.json").read_text())["classes"]
    assert legend == {"0": "background", "1": "brain", "2": "bone"}


def test_scores_of_a_case_are_those_of_the_label_map_that_was_written(predicted):
    assert {row["part"] for row, *_ in predicted} == {"validation"}
    for row, _, written, truth in predicted:
        values = range(6, 12) if row["class"] == "brain" else (1, 2, 3)
        own, true = np.asarray(written.dataobj) == (1 if row["class"] == "brain" else 2), np.isin(truth, values)
        assert float(row["dice"]) == pytest.approx(2 * (own & true).sum() / (own.sum() + true.sum()))
        assert float(row["hd95_mm"]) >= 0


def test_results_are_the_means_over_the_cases_and_over_the_classes(segmented, predicted):
    found = results(segmented)["validation"]
    for name in ("brain", "bone"):
        dice = [float(row["dice"]) for row, *_ in predicted if row["class"] == name]
        assert found["dice"][name] == pytest.approx(np.mean(dice))
    assert found["mean_dice"] == pytest.approx(np.mean(list(found["dice"].values())))


def test_the_model_that_is_left_is_that_of_the_best_validation(segmented):
    model, _ = load_finetuned(segmented)
    best = weights(segmented, "best_model.pth")
    assert all(torch.equal(value, best[name]) for name, value in model.state_dict().items())
    scores = [line["validation_dice"] for line in records(segmented) if "validation_dice" in line]
    assert results(segmented)["best_step"] == 20 * (1 + scores.index(max(scores)))


def test_the_model_that_is_left_says_how_to_use_it_and_where_it_is_from(segmented):
    _, described = load_finetuned(segmented)
    assert described["task"]["classes"] == ["background", "brain", "bone"]
    assert described["preprocessing"]["spacing_mm"] == 2.0
    assert described["preprocessing"]["crop_size"] == [16] * 3
    assert described["preprocessing"]["modalities"]["mri"] == {"channels": 1, "range": [0, 1], "percentiles": [1, 99]}
    assert described["data"]["cases"]["train"] + described["data"]["cases"]["validation"] == 5
    assert described["backbone"]["license"] == "CC-BY-4.0"
    assert described["architecture"]["in_channels"] == [1]


def test_the_report_names_what_was_loaded_of_the_backbone_and_what_was_not(segmented, backbone):
    report = json.loads((segmented / "load_report.json").read_text())
    pretrained = load_backbone(backbone, in_channels=1)
    assert sorted(report["loaded"]) == sorted(pretrained.backbone.state_dict())
    assert set(report["left_out"]) == {"stems.3.weight", "stems.3.bias"}


@pytest.fixture(scope="module")
def classified(heads, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    cases = list_cases(heads, out, test=1)
    return run(config_of(cases, out, "cls", CLASSIFICATION, run={"figures": True}))


def test_a_classification_leaves_what_was_promised(classified):
    assert {path.name for path in classified.iterdir()} == FILES | {"figures", "predictions.csv"}
    with Image.open(classified / "figures" / "predictions.png") as picture:
        assert picture.size[0] > 100


def test_every_case_that_was_not_trained_on_has_a_probability(classified):
    predictions = rows(classified / "predictions.csv")
    assert [row["part"] for row in predictions] == ["validation"] * 2 + ["test"]
    assert all(0 < float(row["present"]) < 1 for row in predictions)


@pytest.mark.parametrize("target", ["present", "fine"])
def test_the_area_is_that_of_the_probabilities_that_were_written(classified, target):
    known = [
        row for row in rows(classified / "predictions.csv") if row["part"] == "validation" and row[f"{target}_truth"]
    ]
    truth, probabilities = ([float(row[key]) for row in known] for key in (f"{target}_truth", target))
    area = roc_auc_score(truth, probabilities)
    areas = {(row["part"], row["target"]): row["auc"] for row in rows(classified / "results.csv")}
    assert float(areas["validation", target]) == pytest.approx(area)
    assert results(classified)["validation"]["auc"][target] == pytest.approx(area)


def test_one_case_has_no_area(classified):
    areas = {(row["part"], row["target"]): row["auc"] for row in rows(classified / "results.csv")}
    assert (areas["test", "present"], areas["test", "fine"]) == ("", "")
    assert results(classified)["test"]["mean_auc"] is None


def test_a_validation_of_a_classification_has_a_loss(classified):
    validated = [line for line in records(classified) if "validation_auc" in line]
    assert validated
    assert all(line["validation_loss"] > 0 for line in validated)


def test_a_classification_learns_where_to_look(tmp_path):
    """Noise, and in half of the volumes a spot anywhere, 4³ voxels that are brighter."""
    generator = np.random.default_rng(0)
    lines = ["image,subject,modality,split,spot"]
    for number in range(24):
        volume = generator.uniform(0, 100, (16, 16, 16)).astype(np.float32)
        if number % 2:
            place = generator.integers(0, 12, 3)
            volume[tuple(slice(start, start + 4) for start in place)] += 100
        nib.save(nib.Nifti1Image(volume, np.diag([2.0, 2, 2, 1])), tmp_path / f"{number}.nii.gz")
        lines.append(f"{number}.nii.gz,{number},mri,{'test' if number >= 16 else ''},{number % 2}")
    (tmp_path / "cases.csv").write_text("\n".join(lines) + "\n")
    training = {"max_steps": 60, "validate_every_steps": 60, "batch_size": 4, "learning_rate": 1e-2}
    task = {"name": "classification", "targets": ["spot"]}
    folder = run(config_of(tmp_path, tmp_path, "spot", task, data={"folds": 1}, training=training))
    assert results(folder)["test"]["auc"]["spot"] > 0.9


def test_runs_do_not_depend_on_what_was_drawn_before(heads, tmp_path):
    kept = {}
    first = run(config_of(heads, tmp_path, "first"), kept=kept)
    torch.manual_seed(5)
    torch.rand(7)
    second = run(config_of(heads, tmp_path, "second"), kept=kept)
    assert exact(first) == exact(second)
    assert len(kept) == 5
    other = run(config_of(heads, tmp_path, "other", run={"seed": 1}), kept=kept)
    assert exact(other) != exact(first)


def test_a_frozen_backbone_stays_as_it_is_and_a_full_one_does_not(heads, backbone, tmp_path):
    pretrained = load_backbone(backbone, in_channels=1).backbone.state_dict()
    changed = {}
    for train in ("frozen", "full"):
        folder = run(config_of(heads, tmp_path, train, backbone={"path": str(backbone), "train": train}))
        state = load_finetuned(folder)[0].features.backbone.state_dict()
        changed[train] = [name for name, value in pretrained.items() if not torch.equal(value, state[name])]
    assert changed["frozen"] == []
    # The mask token serves pretraining; all else learns.
    assert sorted(changed["full"]) == sorted(set(pretrained) - {"mask_token"})


def test_from_scratch_the_report_says_that_nothing_was_loaded(heads, tmp_path):
    folder = run(config_of(heads, tmp_path, "scratch", training={"max_steps": 1}))
    report = json.loads((folder / "load_report.json").read_text())
    assert report["source"] == "random weights"
    assert report["loaded"] == []
    assert "stems.1.weight" in report["missing"]


def test_the_head_begins_alike_whatever_the_backbone_begins_with(heads, backbone, tmp_path):
    more = {"training": {"max_steps": 1, "learning_rate": 1e-12}}
    first = weights(run(config_of(heads, tmp_path, "scratch", **more)))
    second = weights(run(config_of(heads, tmp_path, "loaded", backbone={"path": str(backbone)}, **more)))
    for name, value in first.items():
        if not name.startswith("features."):
            torch.testing.assert_close(second[name], value)
    assert not torch.equal(first["features.backbone.stems.1.weight"], second["features.backbone.stems.1.weight"])


def test_one_fold_trains_on_all_but_the_test_and_takes_the_last_weights(heads, tmp_path):
    cases = list_cases(heads, tmp_path, test=1)
    folder = run(config_of(cases, tmp_path, "all", data={"folds": 1}))
    found = results(folder)
    assert "validation" not in found
    assert found["trained_on"]["cases"] == 4
    assert found["test"]["cases"] == 1
    assert found["best_step"] == 6
    assert not (folder / "best_model.pth").exists()
    last = weights(folder)
    assert all(torch.equal(value, last[name]) for name, value in load_finetuned(folder)[0].state_dict().items())
    assert len(list((folder / "predictions").glob("*.nii.gz"))) == 1


def test_a_run_with_nothing_to_evaluate_leaves_its_model(heads, tmp_path):
    folder = run(
        config_of(heads, tmp_path, "plain", run={"figures": True}, data={"folds": 1}, training={"max_steps": 1})
    )
    assert load_finetuned(folder)
    assert "test" not in results(folder)
    assert not (folder / "predictions").exists()
    assert (folder / "figures" / "predictions.png").exists()


def test_few_subjects_are_trained_on_and_validation_stays(heads, tmp_path):
    whole = results(run(config_of(heads, tmp_path, "whole", training={"max_steps": 1})))
    few = results(run(config_of(heads, tmp_path, "few", data={"num_train_subjects": 1}, training={"max_steps": 1})))
    assert few["trained_on"] == {"cases": 1, "subjects": 1}
    assert few["validation"]["cases"] == whole["validation"]["cases"]


def test_one_model_learns_from_mri_and_ct(heads, backbone, tmp_path):
    files = [list_cases(heads, tmp_path, modality=name).read_text().splitlines() for name in ("mri", "ct")]
    both = tmp_path / "both.csv"
    both.write_text("\n".join([*files[0], *files[1][1:]]) + "\n")
    data = {"modality": None, "folds": 1}
    folder = run(config_of(both, tmp_path, "both", CLASSIFICATION, backbone={"path": str(backbone)}, data=data))
    assert {line["modality"] for line in records(folder)} == {"mri", "ct"}
    assert load_finetuned(folder)[1]["architecture"]["in_channels"] == [1, 3]
    of_mri = export_backbone(tmp_path / "of_mri", mri=5)
    config = config_of(both, tmp_path, "no", CLASSIFICATION, backbone={"path": str(of_mri)}, data=data)
    with pytest.raises(ValueError, match=r"trained on volumes of 1 channels, and the cases are mri and ct, of 3 too"):
        finetune(config)


def test_ct_is_learnt_from_a_backbone_of_mri_and_the_report_says_how(heads, tmp_path):
    path = export_backbone(tmp_path / "of_mri", mri=5)
    config = config_of(
        heads, tmp_path, "ct", backbone={"path": str(path)}, data={"modality": "ct"}, training={"max_steps": 1}
    )
    report = json.loads((run(config) / "load_report.json").read_text())
    assert report["adapted"]["stems.3.weight"] == "stems.1.weight repeated 3 times and divided by 3"
    config.run.name, config.backbone.train, config.backbone.stem = "frozen", "frozen", "new"
    with pytest.raises(ValueError, match=r"not trained on ct, and a new stem would stay random with backbone.train=fr"):
        finetune(config)


def test_a_modality_that_nothing_is_trained_on_is_named(heads, tmp_path, capsys):
    cases = {name: find_cases(heads, modality=name) for name in ("mri", "ct")}
    lines = ["image,label,subject,modality,split"]
    for number, (case, split) in enumerate([*((case, "") for case in cases["mri"][:2]), (cases["ct"][0], "test")]):
        lines.append(f"{case.image},{case.label},{number},{case.modality},{split}")
    (tmp_path / "cases.csv").write_text("\n".join(lines) + "\n")
    config = config_of(
        *(tmp_path / "cases.csv", tmp_path, "both"), data={"modality": None, "folds": 1}, training={"max_steps": 1}
    )
    finetune(config)
    assert "note: test has cases of ct, of which none is trained on" in capsys.readouterr().out


def test_images_lie_as_their_files_do(heads, tmp_path):
    """Axes swapped and flipped, sides of two lengths: predictions come back that way."""
    lines = ["image,label,subject,modality,split"]
    case = find_cases(heads, modality="mri")[0]
    for number, split in enumerate(("train", "test")):  # of the same head, which the model comes to know
        for kind in ("image", "label"):
            given = nib.load(getattr(case, kind))
            turned = np.asarray(given.dataobj)[::-1, :, ::2].transpose(2, 0, 1)
            affine = np.array([[0, -1.0, 0, 15], [0, 0, 1.0, -15], [2.0, 0, 0, -15], [0, 0, 0, 1]])
            nib.save(nib.Nifti1Image(turned, affine), tmp_path / f"{kind}_{number}.nii.gz")
        lines.append(f"image_{number}.nii.gz,label_{number}.nii.gz,s{number},mri,{split}")
    (tmp_path / "cases.csv").write_text("\n".join(lines) + "\n")
    training = {"max_steps": 30, "validate_every_steps": 30, "learning_rate": 1e-2}
    folder = run(config_of(tmp_path, tmp_path, "turned", data={"folds": 1}, training=training))
    (row, *_) = rows(folder / "results.csv")
    image, written = (
        nib.load(path)
        for path in (tmp_path / f"{row['case']}.nii.gz", folder / "predictions" / f"{row['case']}.nii.gz")
    )
    assert written.shape == image.shape == (16, 32, 32)
    np.testing.assert_array_equal(written.affine, image.affine)
    assert nib.aff2axcodes(written.affine) == ("S", "L", "A")
    labels = np.asarray(nib.load(tmp_path / f"{row['case'].replace('image', 'label')}.nii.gz").dataobj)
    own, true = np.asarray(written.dataobj) == 1, np.isin(labels, range(6, 12))
    dice = 2 * (own & true).sum() / (own.sum() + true.sum())
    assert float(row["dice"]) == pytest.approx(dice)
    assert dice > 0.5


def test_scans_that_were_prepared_are_predicted_and_told_apart(heads, tmp_path):
    scans = tmp_path / "scans"
    for number, case in enumerate(find_cases(heads, modality="mri")[:3]):
        folder = scans / f"s{number}"
        folder.mkdir(parents=True)
        given = [nib.load(file) for file in (case.image, case.label)]
        turned = np.diag([-1.0, -1, 1, 1])  # stored as LPS, so that preparing turns it
        turned[:3, 3] = 9
        for image, name in zip(given, ("T1", "T1_labels"), strict=True):
            nib.save(nib.Nifti1Image(np.asarray(image.dataobj), turned), folder / f"{name}.nii.gz")
    Preparer(tmp_path / "out", preparation(modality="mri", spacing="1.0", crop=False), workers=1)([str(scans)])
    data = {"modality": None, "crop_size": [32] * 3, "spacing_mm": "native", "folds": 3}
    folder = run(config_of(tmp_path / "out", tmp_path, "prepared", data=data))
    (written,) = (folder / "predictions").glob("*.nii.gz")
    # All are named T1: their folders tell them apart.
    assert written.name in {f"s{number}_T1.nii.gz" for number in range(3)}
    assert nib.load(written).shape == (32, 32, 32)
    assert len(rows(folder / "results.csv")) == 2
    assert not json.loads((folder / "model.json").read_text())["preprocessing"]["cropped_at_mm"]


def test_an_update_that_breaks_the_weights_is_one_line(heads, tmp_path):
    training = {"learning_rate": 1e30, "weight_decay": 0.0, "warmup_share": 0.0, "validate_every_steps": 1}
    with pytest.raises(
        DivergedError, match=r"(what the model predicts for .*|the loss is .*)lower training.learning_rate"
    ):
        run(config_of(heads, tmp_path, "broken", training=training))


def test_half_precision_trains(heads, tmp_path):
    folder = run(config_of(heads, tmp_path, "bf16", training={"precision": "bf16"}))
    assert all(np.isfinite(line["loss"]) for line in records(folder))
    assert load_finetuned(folder)[0].classify.weight.dtype == torch.float32


def test_a_backbone_pretrained_at_64_is_fine_tuned_at_96_without_any_option(heads, tmp_path):
    settings = {"patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2}
    pretrained = {
        "run": {"name": "pretrained", "out_dir": str(tmp_path), "tensorboard": False},
        "data": {"crop_size": [64] * 3, "num_workers": 0, "sources": [{"path": str(heads / "mri"), "modality": "mri"}]},
        "model": {"backbone": settings, "sparse": "gather", "encoder_widths": [4], "decoder_width": 4},
        "training": {"max_steps": 1, "device": "cpu"},
    }
    pretrain(check_config(pretrained), console=QUIET)
    config = check_finetune_config(
        {
            "run": {"name": "tuned", "out_dir": str(tmp_path), "tensorboard": False, "figures": False},
            "task": {**SEGMENTATION, "width": 2},
            "backbone": {"path": str(tmp_path / "pretrained")},
            "data": {"cases": str(heads), "modality": "mri"},
            "training": {"max_steps": 1},
        }
    )
    assert config.data.crop_size == (96, 96, 96)
    folder = run(config)
    assert results(folder)["validation"]["cases"] == 1
    assert json.loads((folder / "load_report.json").read_text())["missing"] == []
