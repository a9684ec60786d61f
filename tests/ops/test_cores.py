import pytest

from voxelwave.ops import cores


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "nonsense\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
    ],
)
def test_the_quota_of_a_control_group_is_found(tmp_path, files, limit):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cores.core_limit(tmp_path) == limit


@pytest.mark.parametrize(("limit", "available"), [(None, 8), (0.5, 1), (1.5, 2), (3.0, 3), (64.0, 8)])
def test_a_quota_cuts_the_cores_and_leaves_one(monkeypatch, limit, available):
    monkeypatch.setattr(cores, "bound_cores", lambda: 8)
    monkeypatch.setattr(cores, "core_limit", lambda: limit)
    assert cores.available_cores() == available
