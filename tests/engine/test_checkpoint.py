import pickle

import pytest
import torch

from voxelwave.engine.checkpoint import load_checkpoint, save_checkpoint
from voxelwave.ops.files import write_text


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    state = {"model": {"weight": torch.randn(3)}, "step": 7, "config": {"a": [1, None, "x"]}}
    save_checkpoint(tmp_path / "last.pth", state)
    loaded = load_checkpoint(tmp_path / "last.pth")
    assert torch.equal(loaded["model"]["weight"], state["model"]["weight"])
    assert (loaded["step"], loaded["config"]) == (7, state["config"])


def test_an_interrupted_write_leaves_the_old_checkpoint_usable(tmp_path):
    path = tmp_path / "last.pth"
    save_checkpoint(path, {"step": 1})

    def dies_half_way(state, part):
        part.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, {"step": 2}, save=dies_half_way)
    assert load_checkpoint(path)["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.pth"]


def test_a_disk_that_takes_no_more_is_one_line_and_the_old_checkpoint_stays(tmp_path):
    path = tmp_path / "last.pth"
    save_checkpoint(path, {"step": 1})

    def full(state, part):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0\nmore")

    with pytest.raises(ValueError, match=r"cannot write .*last.pth: .*is the disk full") as caught:
        save_checkpoint(path, {"step": 2}, save=full)
    assert "\n" not in str(caught.value)
    assert load_checkpoint(path)["step"] == 1


def test_a_text_file_is_replaced_whole(tmp_path):
    write_text(tmp_path / "a.csv", "old")
    write_text(tmp_path / "a.csv", "new")
    assert (tmp_path / "a.csv").read_text() == "new"


class Harmful:
    def __reduce__(self):
        return (pytest.fail, ("code in a checkpoint was executed",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable checkpoint"),
        (b"<html>", "not a readable checkpoint"),
        (b"run: {name: tiny}\n", "not a readable checkpoint"),
        (pickle.dumps(Harmful()), "not a readable checkpoint"),
        (None, "no checkpoint at"),
    ],
)
def test_what_is_no_checkpoint_is_one_clear_line(tmp_path, content, message):
    path = tmp_path / "last.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_truncated_checkpoint_is_one_clear_line(tmp_path):
    path = tmp_path / "last.pth"
    save_checkpoint(path, {"model": torch.randn(1000)})
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        load_checkpoint(path)


def test_pickled_code_in_a_torch_file_is_refused(tmp_path):
    path = tmp_path / "last.pth"
    torch.save({"format_version": 1, "x": Harmful()}, path)
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        load_checkpoint(path)


def test_another_format_version_is_named(tmp_path):
    torch.save({"format_version": 99}, tmp_path / "last.pth")
    with pytest.raises(ValueError, match="format 99, this voxelwave reads format 1"):
        load_checkpoint(tmp_path / "last.pth")
