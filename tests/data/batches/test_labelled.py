import pytest
import torch

from voxelwave.data.batches.labelled import LabelledVolume
from voxelwave.data.batches.views import RandomView
from voxelwave.ops.seeding import torch_generator


def labelled(shape=(9, 10, 11)):
    """A volume whose every voxel tells its place, and labels with two classes of very different size."""
    volume = torch.arange(shape[0] * shape[1] * shape[2]).float().view(1, *shape) / 2000
    labels = torch.zeros(shape, dtype=torch.uint8)
    labels[1:8, 1:9] = 2
    labels[4, 5, 6] = labels[8, 0, 0] = 5
    return LabelledVolume(volume, labels)


def test_foreground_voxels_are_drawn_evenly_over_the_classes_and_within_them():
    of = labelled()
    drawn = [tuple(of.foreground_voxel(torch_generator(0, number))) for number in range(400)]
    assert of.present == [2, 5]
    rare = [place for place in drawn if of.labels[place] == 5]
    assert 150 < len(rare) < 250
    assert 60 < rare.count((4, 5, 6)) < 140
    assert {tuple(place) for place in rare} == {(4, 5, 6), (8, 0, 0)}
    common = [place for place in drawn if of.labels[place] == 2]
    assert len(rare) + len(common) == 400
    assert {place[0] for place in common} == set(range(1, 8))


def test_every_voxel_of_a_class_can_be_drawn():
    labels = torch.zeros(3, 4, 5, dtype=torch.uint8)
    labels[0, 1, 2:4] = labels[2, 3, 4] = 1
    of = LabelledVolume(torch.zeros(1, 3, 4, 5), labels)
    drawn = {tuple(of.foreground_voxel(torch_generator(number))) for number in range(60)}
    assert drawn == {tuple(place) for place in labels.nonzero().tolist()}


@pytest.mark.parametrize("size", [(4, 4, 4), (9, 4, 16), (16, 16, 16)])
@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_image_and_labels_are_cut_at_the_same_place(size, share):
    of = labelled()
    view = RandomView(crop_size=size, foreground_share=share)
    for number in range(20):
        volume, labels = of.crop(view, torch_generator(number))
        assert volume.shape == (1, *size)
        assert labels.shape == size
        assert labels.dtype == torch.uint8
        for place in (volume[0] > 0).nonzero()[::7].tolist():
            index = round(float(volume[0, *place]) * 2000)
            # Half precision does not tell the last neighbours apart.
            near = of.labels.flatten()[max(0, index - 1) : index + 2].tolist()
            assert int(labels[*place]) in near
        if share == 1:
            assert labels.any()
        if size[0] == 16:
            assert int((labels > 0).sum()) == int((of.labels > 0).sum())


def test_a_crop_follows_from_its_generator_alone():
    of, view = labelled(), RandomView(crop_size=(4, 4, 4), foreground_share=0.5)
    first, again = (of.crop(view, torch_generator(3)) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert any(not torch.equal(of.crop(view, torch_generator(seed))[0], first[0]) for seed in range(4, 8))


def test_labels_without_foreground_are_cut_anywhere():
    of = LabelledVolume(torch.rand(1, 8, 8, 8), torch.zeros(8, 8, 8, dtype=torch.uint8))
    assert of.present == []
    places = {tuple(of.foreground_voxel(torch_generator(number))) for number in range(20)}
    assert len(places) > 10
    _, labels = of.crop(RandomView(crop_size=(4, 4, 4)), torch_generator(0))
    assert not labels.any()
