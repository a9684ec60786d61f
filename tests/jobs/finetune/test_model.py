import json

import pytest
import torch

from voxelwave.downstream.finetuned import build_model, load_finetuned, save_finetuned
from voxelwave.downstream.segmentation import SegmentationModel

ARCHITECTURE = {
    "name": "waveformer",
    "in_channels": [1],
    "settings": {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2},
    "depths": [1, 2],
}
TASKS = {
    "segmentation": {"name": "segmentation", "classes": ["background", "cortex", "ventricles"], "width": 4},
    "classification": {"name": "classification", "targets": ["lesion", "aneurysm"], "pooling": "attention"},
}


def described(task):
    return {"architecture": ARCHITECTURE, "task": TASKS[task], "preprocessing": {"crop_size": [16] * 3}}


@pytest.mark.parametrize("task", TASKS)
def test_a_saved_model_computes_what_it_did(tmp_path, task):
    model = build_model(described(task)).eval()
    save_finetuned(tmp_path, model, described(task))
    loaded, description = load_finetuned(tmp_path)
    volume = torch.rand(2, 1, 16, 8, 12)
    assert torch.equal(loaded(volume), model(volume))
    assert loaded(volume).shape == ((2, 3, 16, 8, 12) if task == "segmentation" else (2, 2))
    assert {**described(task), "sha256": description["sha256"]} == description
    assert not loaded.training
    assert loaded.features.depths == (1, 2)


def damage(folder):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def described_otherwise(change):
    def harm(folder):
        description = json.loads((folder / "model.json").read_text())
        del description["description_sha256"]  # as whoever edits it on purpose does
        change(description)
        (folder / "model.json").write_text(json.dumps(description))

    return harm


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (damage, "is damaged, or not the file that"),
        (lambda folder: (folder / "model.json").write_text("{"), "model.json is damaged"),
        (lambda folder: (folder / "model.json").unlink(), "no model.json in"),
        (lambda folder: (folder / "model.safetensors").unlink(), "give a finished run of `voxelwave finetune`"),
        (described_otherwise(lambda d: d.update(description_sha256="0")), "model.json is damaged, or was edited"),
        (described_otherwise(lambda d: d.pop("task")), "description of the model is damaged: KeyError"),
        (described_otherwise(lambda d: d["task"].update(name="detection")), "unknown task 'detection'"),
        (described_otherwise(lambda d: d["task"].update(width=8)), "does not fit the model"),
        (described_otherwise(lambda d: d["architecture"].update(name="resnet")), "unknown backbone 'resnet'"),
    ],
)
def test_a_damaged_model_is_one_clear_line(tmp_path, harm, message):
    save_finetuned(tmp_path, build_model(described("segmentation")), described("segmentation"))
    harm(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        load_finetuned(tmp_path)
    assert "\n" not in str(caught.value)


def test_of_a_run_of_all_folds_one_has_to_be_given(tmp_path):
    folder = tmp_path / "fold_0"
    folder.mkdir()
    model = build_model(described("segmentation"))
    save_finetuned(folder, model, described("segmentation"))
    assert isinstance(load_finetuned(folder)[0], SegmentationModel)
    with pytest.raises(ValueError, match=r"give one of its folds, such as .*fold_0"):
        load_finetuned(tmp_path)
