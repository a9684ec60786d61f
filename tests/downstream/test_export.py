import pytest
import torch
from torch import nn

from voxelwave.downstream.export import export_onnx, export_torch

GIVEN = {"in_channels": 1, "size": (4, 4, 4), "description": {}}


class Broken(nn.Module):
    def forward(self, volume):
        return volume * float("nan")


class Undecided(nn.Module):
    def forward(self, volume):
        return volume if volume.sum() > 0 else -volume


@pytest.mark.parametrize("export", [export_torch, export_onnx])
def test_what_cannot_be_shown_to_agree_with_pytorch_is_not_written(tmp_path, export):
    names = {"outputs": ["out"]} if export is export_onnx else {}
    with pytest.raises(ValueError, match=r"model.* is not written: it differs from PyTorch by nan") as caught:
        export(Broken(), tmp_path / "model.any", **GIVEN, **names)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_model_whose_way_depends_on_values_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"torch.export does not take the model: .*data-dependent") as caught:
        export_torch(Undecided(), tmp_path / "model.pt2", **GIVEN)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_an_onnx_file_cannot_hold_are_refused_before_anything_is_done(tmp_path):
    with torch.device("meta"):
        large = nn.Linear(2**15, 2**14 + 1, bias=False)
    with pytest.raises(ValueError, match=r"the weights take 2.0 GiB, an ONNX file holds 2: choose --format torch"):
        export_onnx(large, tmp_path / "model.onnx", outputs=["out"], **GIVEN)
