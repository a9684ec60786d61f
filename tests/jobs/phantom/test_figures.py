import sys

import numpy as np
import pytest
from matplotlib.image import imread
from scipy.spatial.distance import cdist

from voxelwave.errors import InputError
from voxelwave.jobs.phantom.figures import draw_learning, draw_maps, draw_preview, flattened, umap_is_installed
from voxelwave.ops.seeding import numpy_generator


def views(phantoms=8, of_each=4, dim=16):
    """Unit vectors, those of one phantom near each other, and the numbers of the phantoms."""
    random = numpy_generator(0)
    numbers = np.repeat(np.arange(phantoms) * 3 + 5, of_each)
    found = np.repeat(random.normal(size=(phantoms, dim)), of_each, axis=0)
    found += 0.1 * random.normal(size=found.shape)
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32), numbers


def panels(path):
    """Whether each of the six panels has colour in it."""
    picture = imread(path)[..., :3]
    return [
        bool((np.ptp(part, axis=-1) > 0.3).any())
        for row in np.array_split(picture, 2)
        for part in np.array_split(row, 3, axis=1)
    ]


def test_a_panel_shows_what_any_record_has(tmp_path):
    records = [{"step": step, "modality": "phantom", "loss": 1 / (step + 1)} for step in range(40)]
    drawn = []
    for added in ({}, {"d_pos": 0.5}, {"learning_rate": 0.0}, {"validation_recall_at_1": 0.9}):
        records[-1] |= added
        draw_learning(records, tmp_path / "learning.png")
        drawn.append(panels(tmp_path / "learning.png"))
    assert drawn[0] == [True, False, False, False, False, False]
    assert drawn[1] == [True, True, False, False, False, False]
    assert drawn[2] == [True, True, False, False, False, True]
    assert drawn[3] == [True, True, False, True, False, True]


METHODS = [
    "tsne",
    pytest.param("umap", marks=pytest.mark.skipif(not umap_is_installed(), reason="the extra umap is not installed")),
]


@pytest.mark.parametrize("method", METHODS)
def test_the_nearest_in_the_plane_is_another_view_of_the_phantom(method):
    embeddings, numbers = views()
    points = flattened(embeddings, method)
    distances = cdist(points, points)
    np.fill_diagonal(distances, np.inf)
    assert (numbers[distances.argmin(1)] == numbers).mean() > 0.95
    np.testing.assert_array_equal(points, flattened(embeddings, method))


@pytest.mark.parametrize("count", [1, 3, 4])
def test_few_embeddings_are_drawn_where_they_can_be(count):
    points = flattened(views()[0][:count], "tsne")
    assert points.shape == (count, 2)
    assert np.isfinite(points).all()
    assert len(np.unique(points, axis=0)) == count


def test_collapsed_embeddings_lie_in_one_point():
    collapsed = np.ones((9, 4), dtype=np.float32)
    for method in ("tsne", "umap") if umap_is_installed() else ("tsne",):
        assert not flattened(collapsed, method).any()


def test_what_cannot_be_drawn_is_named(monkeypatch):
    broken = views()[0].copy()
    broken[0, 0] = np.inf
    with pytest.raises(ValueError, match="finite"):
        flattened(broken, "tsne")
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(InputError, match=r"voxelwave\[umap\]"):
        flattened(views()[0], "umap")


def test_views_of_a_phantom_share_a_colour_and_phantoms_do_not(tmp_path):
    embeddings, numbers = views(phantoms=5)
    draw_maps(embeddings, numbers, tmp_path / "map.png", methods=("tsne",))
    picture = imread(tmp_path / "map.png")[..., :3]
    colours, counts = np.unique((picture * 255).round().reshape(-1, 3), axis=0, return_counts=True)
    filled = [tuple(c) for c, n in zip(colours, counts, strict=True) if n > 30 and np.ptp(c) > 30]
    assert len(filled) == 5


def test_a_sheet_has_a_row_a_sample_and_a_column_an_image(tmp_path):
    bright = np.pad(np.ones((20, 20)), 6)
    dark = np.zeros((32, 32))
    draw_preview([("a", [bright, dark]), ("b", [dark, 100 * bright])], ["one", "two"], tmp_path / "sheet.png")
    picture = imread(tmp_path / "sheet.png")[..., :3]
    quarters = [
        float((part.min(-1) > 0.99).mean())
        for row in np.array_split(picture, 2)
        for part in np.array_split(row, 2, axis=1)
    ]
    # White is 20² of 32² pixels of the image; labels are but a few.
    assert min(quarters[0], quarters[3]) > 0.2
    assert max(quarters[1], quarters[2]) < 0.02
