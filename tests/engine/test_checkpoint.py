import errno
import os
import pickle
import zipfile

import pytest
import torch

from voxelwave.engine.checkpoint import LAST, PREVIOUS, load_checkpoint, save_checkpoint
from voxelwave.errors import InputError
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


def numbers_of(state):
    """Everything that a checkpoint holds, so that two of them can be compared."""
    if isinstance(state, dict):
        return {key: numbers_of(value) for key, value in state.items()}
    if isinstance(state, torch.Tensor):
        return state.dtype, tuple(state.shape), state.numpy().tobytes()
    return state


def test_of_a_checkpoint_with_one_flipped_bit_nothing_else_is_read(tmp_path):
    state = {"model": {"a": torch.randn(6, 5), "b": torch.arange(3)}, "step": 7, "config": {"rate": 0.1}}
    good = tmp_path / "good.pth"
    save_checkpoint(good, state)
    content, expected = good.read_bytes(), numbers_of(load_checkpoint(good))
    generator = torch.Generator().manual_seed(0)
    flips = set(torch.randint(8 * len(content), (150,), generator=generator).tolist())
    # More in the directory at the end, where names, sizes and attributes of entries are.
    with zipfile.ZipFile(good) as archive:
        flips |= set(range(8 * archive.start_dir, 8 * len(content), 53))
    refused = 0
    for bit in sorted(flips):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / "last.pth").write_bytes(damaged)
        try:
            assert numbers_of(load_checkpoint(tmp_path / "last.pth")) == expected, bit
        except InputError:
            refused += 1
    assert refused > len(flips) / 2


def test_an_entry_that_torch_would_take_for_an_empty_one_is_refused(tmp_path):
    path = tmp_path / "last.pth"
    save_checkpoint(path, {"model": torch.arange(1000)})
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    for at in range(start, len(content) - 4):
        if content[at : at + 4] == b"PK\1\2" and content[at + 46 :].startswith(b"archive/data/"):
            content[at + 38] |= 0x10
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a readable checkpoint"):
        load_checkpoint(path)


def test_the_generation_before_is_kept(tmp_path):
    last, previous = tmp_path / LAST, tmp_path / PREVIOUS
    for step in (1, 2, 3):
        save_checkpoint(last, {"step": step}, previous=previous)
    assert (load_checkpoint(last)["step"], load_checkpoint(previous)["step"]) == (3, 2)


def test_a_checkpoint_is_the_same_file_whatever_its_name(tmp_path):
    for name in ("one.pth", "other.pth"):
        save_checkpoint(tmp_path / name, {"a": 1})
    assert (tmp_path / "one.pth").read_bytes() == (tmp_path / "other.pth").read_bytes()


def test_torchs_word_for_a_full_disk_is_the_systems(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "last.pth"
    save_checkpoint(path, {"step": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(InputError) as caught:
            save_checkpoint(path, {"model": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(caught.value) == f"cannot write {path}: {os.strerror(errno.EFBIG)}; the file before it is unharmed"
    assert load_checkpoint(path)["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.pth"]


def test_a_folder_that_is_gone_is_no_full_disk(tmp_path):
    path = tmp_path / "gone" / "last.pth"
    with pytest.raises(InputError) as caught:
        save_checkpoint(path, {"step": 1})
    assert str(caught.value) == f"cannot write {path}: {os.strerror(errno.ENOENT)}"


def test_torchs_older_format_which_has_no_checksums_is_refused(tmp_path):
    torch.save({"format_version": 1}, tmp_path / "last.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "last.pth")
