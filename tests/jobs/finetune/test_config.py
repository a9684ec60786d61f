from pathlib import Path

import pytest
import yaml

from voxelwave.jobs.finetune.config import check_finetune_config, load_finetune_config, with_defaults

SEGMENTATION = {"name": "segmentation", "classes": {"cortex": [3, "1000-2035"], "ventricles": 4}}
PREPROCESSING = {
    "spacing_mm": [1, 1, 2],
    "modalities": {"mri": {"channels": 1, "range": [0, 1], "percentiles": [1, 98]}},
}


def raw(**sections):
    return {"task": SEGMENTATION, "data": {"cases": "data"}, **sections}


def test_defaults_are_those_of_the_schema():
    config = check_finetune_config(raw())
    assert config.task.classes == {"cortex": [3, "1000-2035"], "ventricles": [4]}
    assert config.data.crop_size == (96, 96, 96)
    assert (config.data.folds, config.data.fold, config.data.spacing_mm) == (5, 0, "backbone")
    assert config.backbone.scratch.settings["depth"] == 12
    assert str(config.run_folder()) == "checkpoints/finetune"


def test_what_nothing_is_said_of_is_as_the_backbone_had_it():
    config = check_finetune_config(raw())
    filled = with_defaults(config, PREPROCESSING, ["mri", "ct"])
    assert filled.data.spacing_mm == (1, 1, 2)
    assert filled.data.modalities["mri"] == {"percentiles": (1, 98)}
    assert filled.data.modalities["ct"]["require_hu"] is True
    assert list(filled.data.augment["mri"]) == ["gamma", "noise"]
    assert config.data.spacing_mm == "backbone"  # the given one stays
    assert with_defaults(config, {"spacing_mm": None}, ["mri"]).data.spacing_mm == "native"
    assert with_defaults(config, {}, ["mri"]).data.spacing_mm == "native"


def test_what_is_said_counts_more_than_the_backbone():
    data = {
        "cases": "data",
        "spacing_mm": 1.5,
        "modalities": {"mri": {"percentiles": [5, 95]}},
        "augment": {"mri": {"flip": {"probability": 0.1}}},
    }
    filled = with_defaults(check_finetune_config(raw(data=data)), PREPROCESSING, ["mri"]).data
    assert (filled.spacing_mm, filled.modalities["mri"]) == (1.5, {"percentiles": (5, 95)})
    assert list(filled.augment["mri"]) == ["flip"]
    assert filled.augment["mri"]["flip"]["probability"] == 0.1


def test_a_filled_config_is_one_by_itself(tmp_path):
    filled = with_defaults(check_finetune_config(raw()), PREPROCESSING, ["mri"])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(filled.model_dump(mode="json")))
    again = load_finetune_config(tmp_path / "config.yaml")
    assert again.model_dump(mode="json") == filled.model_dump(mode="json")
    assert with_defaults(again, {}, ["mri"]).model_dump(mode="json") == filled.model_dump(mode="json")


def test_overrides_reach_every_section(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw()))
    overrides = ["training.max_steps=7", "data.fold=all", "task.classes.cortex=[3]", "backbone.path=null"]
    config = load_finetune_config(tmp_path / "config.yaml", overrides)
    assert (config.training.max_steps, config.data.fold) == (7, "all")
    assert config.task.classes["cortex"] == [3]


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("task", {"name": "detection"}, "key 'task.name' is one of segmentation, classification, got 'detection'"),
        ("task", None, "key 'task.name' is one of"),
        ("task", {"name": "segmentation"}, "key 'task.classes' is missing"),
        ("task", {**SEGMENTATION, "targets": ["a"]}, "unknown key 'task.targets'; known here: name, classes, other"),
        ("task", {"name": "segmentation", "classes": {"a": 0}}, "key 'task.classes': class 'a': a label is a whole"),
        ("task", {"name": "segmentation", "classes": {"a": 1, "b": "1-3"}}, "of class 'b' is in class 'a' too"),
        ("task", {"name": "segmentation", "classes": []}, "key 'task.classes'"),
        ("task", {"name": "segmentation", "classes": {"a": True}}, "key 'task.classes.a"),
        ("task", {"name": "segmentation", "classes": {"": 1}}, "class '' needs a name"),
        ("task", {"name": "classification", "targets": []}, "key 'task.targets'"),
        ("task", {"name": "classification", "targets": ["a", "a"]}, "a target is named twice"),
        ("task", {"name": "classification", "targets": ["sha256"]}, "'sha256' is a column of the tables of results"),
        ("data", {"cases": "d", "crop": 3}, "unknown key 'data.crop'; known here: cases, modality"),
        ("data", {"cases": "d", "fold": 5}, "key 'data.fold' is 0…4 or all"),
        ("data", {"cases": "d", "fold": "some"}, "key 'data.fold"),
        ("data", {"cases": "d", "modality": "pet"}, "unknown modality 'pet' in 'data.modality'; known: ct, mri"),
        ("data", {"cases": "d", "augment": {"mri": {"twist": {}}}}, "unknown augmentation 'twist'"),
        ("data", {"cases": "d", "augment": {"mri": {"flip": {"p": 1}}}}, "unknown key 'data.augment.mri.flip.p'"),
        ("data", {"cases": "d", "spacing_mm": "fine"}, "key 'data.spacing_mm"),
        ("backbone", {"train": "half"}, "key 'backbone.train'"),
        ("backbone", {"layer_decay": 0}, "key 'backbone.layer_decay'"),
        ("backbone", {"scratch": {"deep": 3}}, "unknown key 'backbone.scratch.deep'"),
        ("training", {"epochs": 3}, "unknown key 'training.epochs'; known here: max_steps"),
        ("run", {"name": "../x"}, "key 'run.name'"),
    ],
)
def test_what_does_not_fit_is_one_line_with_the_key(section, values, message):
    with pytest.raises(ValueError, match=message) as caught:
        check_finetune_config(raw(**{section: values}))
    assert "\n" not in str(caught.value)


def test_patience_needs_validation():
    with pytest.raises(ValueError, match=r"key 'training.patience' needs validation, and data.folds=1 has none"):
        check_finetune_config(raw(data={"cases": "data", "folds": 1}, training={"patience": 3}))


@pytest.mark.parametrize("name", ["segmentation", "classification"])
def test_the_shipped_configs_are_valid(name):
    config = load_finetune_config(Path(__file__).parents[3] / "configs" / "finetune" / f"{name}.yaml")
    assert config.task.name == name
