import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from PIL import Image

from voxelwave.jobs.finetune.figures import draw_course, draw_roc, draw_segmentations


def test_a_segmentation_is_drawn_where_it_is(tmp_path):
    image = np.full((8, 8, 8), 0.5, np.float32)
    truth, predicted = np.zeros((2, 8, 8, 8), np.uint8)
    truth[2:6, 2:6, 5] = 1
    predicted[2:6, 2:6, 5] = 2
    draw_segmentations([("a", image, truth, predicted), ("b", image, truth, truth)], ["x", "y"], tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as picture:
        drawn = np.asarray(picture.convert("RGB")).astype(int)
    coloured = (np.ptp(drawn, axis=2) > 40).any(axis=0)
    third = drawn.shape[1] // 3
    # The image is grey; truth and prediction have colours, and in the first row not the same.
    assert not coloured[: third - 20].any()
    assert coloured[third : 2 * third].any()
    assert coloured[2 * third :].any()


def near(path, colour, part=(0, 1)):
    """How many pixels of this share of the width have about this colour of matplotlib."""
    picture = imread(path)[..., :3]
    left, right = (int(share * picture.shape[1]) for share in part)
    return int((np.abs(picture[:, left:right] - to_rgb(colour)).max(-1) < 0.1).sum())


def test_the_course_of_a_run_without_validation_is_its_loss(tmp_path):
    draw_course([{"step": step, "loss": 1.0 / (step + 1)} for step in range(6)], "validation_dice", tmp_path / "p.png")
    assert near(tmp_path / "p.png", "C0", (0, 0.5)) > 100
    assert near(tmp_path / "p.png", "C1") == 0
    assert near(tmp_path / "p.png", "C0", (0.5, 1)) == 0


def test_validations_are_drawn_beside_the_loss_and_each_class_by_itself(tmp_path):
    records = [{"step": step, "loss": 1.0 / (step + 1)} for step in range(6)]
    records[2] |= {"validation_dice": 0.2, "validation_dice_white matter": 0.3, "validation_loss": 0.5}
    records[5] |= {"validation_dice": 0.4, "validation_dice_white matter": 0.6, "validation_loss": 0.1}
    draw_course(records, "validation_dice", tmp_path / "p.png")
    assert near(tmp_path / "p.png", "C1", (0, 0.5)) > 100  # the validation loss
    mean, white_matter = (near(tmp_path / "p.png", colour, (0.5, 1)) for colour in ("C0", "C1"))
    assert mean > white_matter > 100  # the mean is the thicker line


def test_a_curve_is_drawn_for_each_target_with_cases_of_both_kinds(tmp_path):
    truth = np.array([[0, 1, 0, 1], [1, 1, 1, np.nan], [np.nan] * 4]).T
    right = np.array([[0.1, 0.9, 0.2, 0.8]] * 3).T
    draw_roc(right, truth, ["a", "b", "c"], tmp_path / "right.png")
    draw_roc(1 - right, truth, ["a", "b", "c"], tmp_path / "wrong.png")
    for name, above in (("right.png", True), ("wrong.png", False)):
        assert near(tmp_path / name, "C0") > 300
        assert near(tmp_path / name, "C1") == near(tmp_path / name, "C2") == 0
        picture = imread(tmp_path / name)[..., :3]
        blue = np.abs(picture - to_rgb("C0")).max(-1) < 0.1
        quarter = len(blue) // 4
        assert (blue[quarter:-quarter, :quarter].sum() > 100) == above  # it rises at the left, or not before the end
