import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from voxelwave.jobs.pretrain.figures import COLOURS, draw_curves, draw_reconstructions, middle_slices


def test_middle_slices_have_their_up_direction_up():
    volume = np.zeros((4, 6, 8))
    volume[:, :, 7] = 1.0  # the top of the head
    volume[:, 5, :] = 0.5  # its front
    axial, coronal, sagittal = middle_slices(volume)
    assert (axial.shape, coronal.shape, sagittal.shape) == ((6, 4), (8, 4), (8, 6))
    # Rows are drawn from below: the last one is the front, the top, the top.
    assert (axial[-1] == 0.5).all()
    assert (coronal[-1] == 1.0).all()
    assert (sagittal[-1, :5] == 1.0).all()
    assert (sagittal[:, -1] == 0.5).all()


def test_hidden_voxels_are_drawn_in_a_colour_and_all_else_in_grey(tmp_path):
    seen = np.full((8, 8, 8), 0.5)
    holes = seen.copy()
    holes[4:] = np.nan
    draw_reconstructions([("one", [seen, holes])], ["input", "masked"], tmp_path / "panel.png")
    picture = imread(tmp_path / "panel.png")[..., :3]
    coloured = np.abs(picture - picture.mean(-1, keepdims=True)).max(-1) > 0.1
    left, right = np.array_split(coloured, 2, axis=1)
    assert not left.any()
    assert right.mean() > 0.05


def test_each_panel_has_a_curve_of_each_modality_that_the_run_has(tmp_path):
    names = ("loss", "reconstruction", "contrastive", "alignment", "baseline")
    records = [{"step": step, "modality": "mri", **dict.fromkeys(names, 1.0 / (step + 1))} for step in range(40)]
    for record in (records[0], records[-1]):
        record |= {"effective_rank_mri": 1.0, "feature_std_mri": 1.0}
    draw_curves(records, tmp_path / "losses.png")
    picture = imread(tmp_path / "losses.png")[..., :3]
    panels = [panel for row in np.array_split(picture, 2) for panel in np.array_split(row, 4, axis=1)]
    inks = {
        modality: [int((np.abs(panel - to_rgb(COLOURS[modality])).max(-1) < 0.1).sum()) for panel in panels]
        for modality in COLOURS
    }
    assert min(inks["mri"][:6]) > 100  # four losses and two gauges
    assert not any(inks["mri"][6:])  # what was not recorded
    assert not any(inks["ct"])


def test_a_curve_that_was_not_recorded_has_no_panel(tmp_path):
    names = ("loss", "reconstruction", "baseline")
    records = [{"step": step, "modality": "mri", **dict.fromkeys(names, 1.0 / (step + 1))} for step in range(40)]
    draw_curves(records, tmp_path / "losses.png")
    picture = imread(tmp_path / "losses.png")[..., :3]
    height, width = picture.shape[:2]
    drawn = (picture[: 2 * height // 5].min(-1) < 1).any(0)
    assert drawn[: width // 2].mean() > 0.8
    assert not drawn[3 * width // 5 :].any()


def test_probes_are_drawn_where_there_are_any(tmp_path):
    names = ("loss", "reconstruction", "contrastive", "alignment", "baseline")
    records = [{"step": step, "modality": "ct", **dict.fromkeys(names, 0.5)} for step in range(9)]
    inks = []
    for gauges in ({}, {"linear_lesion_ct": 0.7}, {"linear_lesion_ct": 0.7, "knn_lesion_ct": 0.2}):
        records[0] |= gauges
        records[8] |= gauges
        draw_curves(records, tmp_path / "losses.png")
        picture = imread(tmp_path / "losses.png")[..., :3]
        last = picture[picture.shape[0] // 2 :, 77 * picture.shape[1] // 100 :]
        inks.append(int((last.min(-1) < 0.9).sum()))
    assert inks[0] == 0 < inks[1] < inks[2]
