import numpy as np
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


def test_the_course_of_any_run_is_drawn(tmp_path):
    records = [{"step": step, "loss": 1.0 / (step + 1)} for step in range(6)]
    draw_course(records, "validation_dice", tmp_path / "without.png")
    records[2] |= {"validation_dice": 0.2, "validation_dice_white matter": 0.3, "validation_loss": 0.5}
    records[5] |= {"validation_dice": 0.4}
    draw_course(records, "validation_dice", tmp_path / "with.png")
    assert (tmp_path / "without.png").read_bytes() != (tmp_path / "with.png").read_bytes()


def test_curves_of_targets_with_cases_of_both_kinds_are_drawn(tmp_path):
    truth = np.array([[0, 1, 0, 1], [1, 1, 1, np.nan], [np.nan] * 4]).T
    draw_roc(np.random.default_rng(0).random((4, 3)), truth, ["a", "b", "c"], tmp_path / "roc.png")
    with Image.open(tmp_path / "roc.png") as image:
        assert image.size == (540, 540)
