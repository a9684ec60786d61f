import json

import pytest
import torch

from voxelwave import load_backbone
from voxelwave.backbones.waveformer import WaveFormer3D
from voxelwave.downstream.load_backbone import DESCRIPTION, WEIGHTS, save_backbone

SETTINGS = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}


@pytest.fixture
def run(tmp_path):
    backbone = WaveFormer3D(**SETTINGS)
    architecture = {"name": "waveformer", "in_channels": [1, 3], "settings": SETTINGS}
    save_backbone(tmp_path, backbone.state_dict(), {"architecture": architecture})
    return tmp_path, backbone


def test_a_saved_backbone_computes_what_it_did_from_either_path(run):
    folder, backbone = run
    volume = torch.rand(1, 3, 16, 8, 12)
    for path in (folder, folder / WEIGHTS, str(folder)):
        assert torch.equal(load_backbone(path)(volume), backbone(volume))


def damage_weights(folder):
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def drop_settings(folder):
    description = json.loads((folder / DESCRIPTION).read_text())
    del description["architecture"]["settings"]
    (folder / DESCRIPTION).write_text(json.dumps(description))


def change_architecture(folder):
    description = json.loads((folder / DESCRIPTION).read_text())
    description["architecture"]["settings"]["depth"] = 3
    (folder / DESCRIPTION).write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (damage_weights, "is damaged, or not the file that"),
        (drop_settings, "backbone.json is damaged: KeyError"),
        (lambda folder: (folder / DESCRIPTION).write_text("{"), "backbone.json is damaged"),
        (change_architecture, "does not fit its backbone.json: .*Missing key"),
        (lambda folder: (folder / WEIGHTS).unlink(), "no backbone.safetensors in"),
        (lambda folder: (folder / DESCRIPTION).unlink(), "no backbone.json in"),
    ],
)
def test_a_damaged_backbone_is_one_clear_line(run, harm, message):
    folder, _ = run
    harm(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load_backbone(folder)
    assert "\n" not in str(caught.value)
