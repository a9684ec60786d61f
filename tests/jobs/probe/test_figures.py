import numpy as np
import pytest
from matplotlib.image import imread
from sklearn.decomposition import PCA

from voxelwave.jobs.probe.figures import draw_embeddings, principal_plane


def test_the_plane_is_that_of_principal_component_analysis():
    features = (np.random.default_rng(0).normal(size=(30, 8)) * np.arange(1, 9) + 5).astype(np.float32)
    points, shares = principal_plane(features)
    known = PCA(2, svd_solver="full").fit(features.astype(np.float64))
    np.testing.assert_allclose(shares, known.explained_variance_ratio_, rtol=1e-5)
    np.testing.assert_allclose(np.abs(points), np.abs(known.transform(features)), atol=1e-4)


@pytest.mark.parametrize("features", [np.ones((4, 3)), np.ones((1, 3)), np.arange(4.0)[:, None]])
def test_features_that_span_no_plane_are_drawn_where_they_lie(features):
    points, shares = principal_plane(features)
    assert np.isfinite(points).all()
    assert shares.sum() == pytest.approx(1.0 if len(np.unique(features)) > 1 else 0.0)


def test_each_value_of_a_target_has_its_colour(tmp_path):
    features = np.random.default_rng(0).normal(size=(12, 4))
    pictures = []
    for names in (["0", "1", ""] * 4, ["0"] * 12):
        draw_embeddings({"mri": ({"pretrained": features}, {"lesion": names})}, tmp_path / "map.png")
        picture = imread(tmp_path / "map.png")[..., :3]
        colours, counts = np.unique((picture * 15).round().reshape(-1, 3), axis=0, return_counts=True)
        pictures.append({tuple(c) for c, n in zip(colours, counts, strict=True) if n > 60 and np.ptp(c) > 3})
    assert len(pictures[0]) == 2
    assert len(pictures[1]) == 1
