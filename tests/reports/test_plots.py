import errno
import os

import numpy as np
import pytest
from matplotlib.image import imread

from voxelwave.reports.plots import draw_smoothed, new_figure, running_mean, series


def test_a_series_counts_the_steps_after_which_it_was_recorded():
    records = [{"step": 0, "loss": 3.0}, {"step": 4}, {"step": 7, "loss": 1.0, "score": 0.5}]
    assert series(records, "loss") == ([1, 8], [3.0, 1.0])
    assert series(records, "other") == ([], [])


@pytest.mark.parametrize("count", [0, 1, 7, 95])
def test_a_running_mean_is_over_as_much_as_there_is_on_each_side(count):
    values = np.random.default_rng(0).random(count).tolist()
    reach = max(count // 30, 1)
    known = [np.mean([values[j] for j in range(count) if abs(i - j) <= reach]) for i in range(count)]
    assert running_mean(values) == pytest.approx(known)


def test_noise_is_pale_and_its_mean_is_not(tmp_path):
    figure = new_figure(4, 3)
    axis = figure.subplots()
    draw_smoothed(axis, list(range(60)), [0.0, 1.0] * 30, colour="red", label="noise")
    pale, mean = axis.lines
    assert pale.get_alpha() < 0.5
    assert mean.get_alpha() is None
    assert np.ptp(pale.get_ydata()) == 1
    assert np.ptp(mean.get_ydata()) < 0.4
    figure.savefig(tmp_path / "noise.png")
    picture = imread(tmp_path / "noise.png")[..., :3]
    assert ((picture[..., 0] > 0.9) & (picture[..., 1] < 0.1)).sum() > 100


def test_a_name_is_no_formula(tmp_path):
    figure = new_figure(4, 3)
    axis = figure.subplots()
    axis.plot([0, 1], label="$\\frac$")
    axis.set_title(r"$\no{command$ $5")
    figure.legend()
    figure.savefig(tmp_path / "a.png")
    assert imread(tmp_path / "a.png").shape[:2] == (300, 400)


def test_a_figure_that_the_disk_does_not_take_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "losses.png"
    new_figure(1, 1).savefig(path)
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/losses\.png'"):
        new_figure(1, 1).savefig(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_that_is_no_utf8_is_drawn(tmp_path):
    figure = new_figure(2, 2)
    axis = figure.subplots()
    axis.set_title(f"{os.fsdecode(bytes([77, 252]))}\nbelow")
    figure.savefig(tmp_path / "a.png")
    assert axis.get_title() == "M\\udcfc\nbelow"
