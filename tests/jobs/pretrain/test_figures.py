import numpy as np
from matplotlib.image import imread

from voxelwave.jobs.pretrain.figures import curves_figure, draw_reconstructions, middle_slices


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


LOSSES = ("loss", "reconstruction", "contrastive", "alignment", "baseline")


def made_records(*names, modality="mri"):
    return [{"step": step, "modality": modality, **dict.fromkeys(names, 1.0 / (step + 1))} for step in range(40)]


def lines_by_title(records):
    figure = curves_figure(records)
    return {axis.get_title(): {line.get_label() for line in axis.lines} for axis in figure.axes}


def test_a_run_on_pairs_has_the_gauges_of_both_modalities():
    records = made_records(*LOSSES, modality="mri+mri") + made_records(*LOSSES, modality="mri+ct")
    records[0] |= {"effective_rank_mri": 1.0, "effective_rank_ct": 2.0, "feature_std_ct": 1.0}
    panels = lines_by_title(records)
    assert len(panels) == 6
    assert panels["effective rank"] == {"MRI", "CT"}


def test_each_panel_has_a_curve_of_each_modality_that_the_run_has():
    records = made_records(*LOSSES)
    for record in (records[0], records[-1]):
        record |= {"effective_rank_mri": 1.0, "feature_std_mri": 1.0}
    panels = lines_by_title(records)
    assert len(panels) == 6  # four losses and two gauges: nothing of what was not recorded
    assert all("MRI" in lines and "CT" not in lines for lines in panels.values())
    assert "guessing the mean" in panels["reconstruction"]
    assert len(lines_by_title([*records, *made_records("loss", modality="ct")])["total loss"]) == 2 * 2


def test_a_curve_that_was_not_recorded_has_no_panel():
    assert set(lines_by_title(made_records("loss", "reconstruction", "baseline"))) == {"total loss", "reconstruction"}
    assert set(lines_by_title(made_records("loss"))) == {"total loss"}


def test_probes_are_drawn_where_there_are_any():
    records = made_records(*LOSSES, modality="ct")
    without = lines_by_title(records)
    records[0] |= {"linear_lesion_ct": 0.7}
    records[8] |= {"linear_lesion_ct": 0.7, "knn_lesion_ct": 0.2}
    (probes,) = (lines for title, lines in lines_by_title(records).items() if title not in without)
    assert probes == {"lesion, CT, linear", "lesion, CT, knn"}
