from __future__ import annotations

import numpy as np
import pytest

from voxelwave.ops.seeding import numpy_generator
from voxelwave.physics.heads3d import (
    MRI_CONTRASTS,
    PARENCHYMA,
    Labels,
    Tissue,
    draw_head,
    render_ct,
    render_mri,
)

SIZE = 64
LESIONS = (Tissue.ISCHAEMIA, Tissue.TUMOUR, Tissue.OEDEMA, Tissue.HAEMORRHAGE)


@pytest.fixture(scope="module")
def heads() -> list[Labels]:
    return [draw_head(numpy_generator(0, "head", index), size=SIZE) for index in range(12)]


def tissue_means(image: np.ndarray, labels: Labels) -> dict[Tissue, float]:
    return {tissue: float(np.median(image[labels == tissue])) for tissue in Tissue if (labels == tissue).any()}


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * float((first & second).sum()) / float(first.sum() + second.sum())


def test_the_same_key_draws_the_same_head_bit_for_bit() -> None:
    first, second = (
        (labels := draw_head(generator, size=40), render_mri(labels, generator, contrast="T1"))
        for generator in (numpy_generator(7, "head"), numpy_generator(7, "head"))
    )
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


def test_heads_of_different_keys_differ_in_anatomy(heads: list[Labels]) -> None:
    brains = [np.isin(labels, PARENCHYMA) for labels in heads[:4]]
    cortices = [labels == Tissue.GREY_MATTER for labels in heads[:4]]
    for i in range(4):
        for j in range(i):
            assert dice(brains[i], brains[j]) < 0.92
            assert dice(cortices[i], cortices[j]) < 0.65


def test_left_and_right_are_alike_but_not_mirror_images(heads: list[Labels]) -> None:
    white = heads[0] == Tissue.WHITE_MATTER
    assert dice(white, white[::-1]) < 0.9
    left, right = white[: SIZE // 2].sum(), white[SIZE // 2 :].sum()
    assert 0.6 < left / right < 1.6


def test_every_head_has_all_of_its_anatomy_and_every_lesion_occurs_in_some(heads: list[Labels]) -> None:
    sometimes = {*LESIONS, Tissue.ANEURYSM}
    for labels in heads:
        assert set(Tissue) - sometimes <= {Tissue(value) for value in np.unique(labels)}
    assert {int(value) for labels in heads for value in np.unique(labels)} == set(Tissue)
    with_lesions = [bool(np.isin(labels, LESIONS).any()) for labels in heads]
    assert any(with_lesions)
    assert not all(with_lesions)


@pytest.mark.parametrize("size", [32, 33, 48])
def test_a_head_keeps_its_proportions_at_any_size(size: int) -> None:
    labels = draw_head(numpy_generator(1, "size"), size=size)
    assert labels.shape == (size, size, size)
    assert labels.dtype == np.uint8
    assert 0.2 < (labels != Tissue.AIR).mean() < 0.6
    # Air above, in front and at the sides; the neck is cut by the field of view.
    for face in (labels[0], labels[-1], labels[:, 0], labels[:, :, -1]):
        assert (face == Tissue.AIR).mean() > 0.95
    assert (labels[:, :, 0] == Tissue.MUSCLE).any()


def test_axes_run_to_the_right_to_the_front_and_up(heads: list[Labels]) -> None:
    for labels in heads:
        eyes, cerebellum, ventricles = (
            np.argwhere(labels == tissue).mean(0) for tissue in (Tissue.EYE, Tissue.CEREBELLUM, Tissue.VENTRICLE)
        )
        assert eyes[1] > cerebellum[1] + SIZE / 4
        assert ventricles[2] > cerebellum[2]


def test_brain_lies_inside_of_the_skull(heads: list[Labels]) -> None:
    for labels in heads:
        brain = np.isin(labels, PARENCHYMA)
        middle = int(np.argwhere(brain).mean(0)[2]) + SIZE // 8
        for row_brain, row_bone in zip(
            brain[:, :, middle], np.isin(labels, (Tissue.SKULL, Tissue.DIPLOE))[:, :, middle], strict=True
        ):
            if row_brain.any():
                inside, bone = np.flatnonzero(row_brain), np.flatnonzero(row_bone)
                assert bone.min() < inside.min()
                assert inside.max() < bone.max()


@pytest.mark.parametrize(
    ("contrast", "from_bright_to_dark"),
    [
        ("T1", (Tissue.SCALP, Tissue.WHITE_MATTER, Tissue.GREY_MATTER, Tissue.VENTRICLE, Tissue.AIR)),
        ("T2", (Tissue.VENTRICLE, Tissue.GREY_MATTER, Tissue.WHITE_MATTER, Tissue.SKULL, Tissue.AIR)),
        ("FLAIR", (Tissue.ISCHAEMIA, Tissue.GREY_MATTER, Tissue.WHITE_MATTER, Tissue.VENTRICLE, Tissue.AIR)),
        ("MRA", (Tissue.VESSEL, Tissue.WHITE_MATTER, Tissue.VENTRICLE, Tissue.AIR)),
    ],
)
def test_mri_contrasts_order_tissues_as_scanners_do(
    heads: list[Labels], contrast: str, from_bright_to_dark: tuple[Tissue, ...]
) -> None:
    labels = next(labels for labels in heads if (labels == Tissue.ISCHAEMIA).sum() > 50)
    generator = numpy_generator(0, contrast)
    images = [render_mri(labels, generator, contrast=contrast) for _ in range(4)]
    means = tissue_means(sum(image / image.max() for image in images) / 4, labels)
    ordered = [means[tissue] for tissue in from_bright_to_dark]
    assert ordered == sorted(ordered, reverse=True)
    assert images[0].dtype == np.float32
    assert images[0].min() >= 0
    assert len({round(float(image.max())) for image in images}) == 4


def test_no_contrast_is_left_out_of_the_order_test() -> None:
    assert MRI_CONTRASTS == ("T1", "T2", "FLAIR", "MRA")


def test_ct_is_in_hounsfield_units(heads: list[Labels]) -> None:
    ranges_hu = {
        Tissue.AIR: (-1024, -950),
        Tissue.SKULL: (500, 1500),
        Tissue.VENTRICLE: (0, 25),
        Tissue.WHITE_MATTER: (24, 34),
        Tissue.GREY_MATTER: (25, 42),
        Tissue.CEREBELLUM: (28, 42),
    }
    vessels_hu = []
    for index, labels in enumerate(heads):
        image = render_ct(labels, numpy_generator(0, "ct", index))
        assert image.dtype == np.int16
        means = tissue_means(image, labels)
        for tissue, (lowest, highest) in ranges_hu.items():
            assert lowest <= means[tissue] <= highest, tissue.name
        assert means[Tissue.VENTRICLE] < means[Tissue.WHITE_MATTER]
        vessels_hu.append(means[Tissue.VESSEL])
    # Some heads got contrast agent, most did not.
    assert min(vessels_hu) < 60
    assert max(vessels_hu) > 90
