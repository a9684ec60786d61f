import time

import pytest
import torch

from support.masks import blocks
from voxelwave.sparse import fastest as module
from voxelwave.sparse.backends import make_backend
from voxelwave.sparse.dense import DenseBackend
from voxelwave.sparse.encoder import SparseEncoder
from voxelwave.sparse.fastest import Trial, try_backends


class SlowBackend(DenseBackend):
    """Dense, and late."""

    name = "slow"
    passes = 0

    def convolve(self, volume, weight, bias):
        SlowBackend.passes += 1
        time.sleep(0.6)
        return super().convolve(volume, weight, bias)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return SparseEncoder(3, widths=(4,), backend="dense")


def masks():
    return [blocks((4, 4, 4), side=2, share=0.4, batch=batch) for batch in (2, 1)]


def test_the_fastest_is_found_and_what_is_far_behind_is_tried_once(encoder, monkeypatch):
    made = {"slow": SlowBackend, "dense": DenseBackend}
    monkeypatch.setattr(module, "make_backend", lambda name: made[name]())
    monkeypatch.setattr(module, "why_not", lambda name, device: "is missing" if name == "absent" else None)
    trial = try_backends(encoder, masks(), ["absent", "slow", "dense"], budget_s=0.1)
    assert list(trial.seconds) == ["slow", "dense"]
    assert trial.seconds["slow"] > max(1.0, trial.seconds["dense"])
    assert SlowBackend.passes == 1 + len(masks())  # the first to warm up
    assert trial.fastest() == "dense"
    assert trial.left_out == {"absent": "is missing"}


def test_a_backend_that_fails_is_left_out(encoder, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("out of memory\nwith advice")

    monkeypatch.setattr(DenseBackend, "convolve", full)
    trial = try_backends(encoder, masks(), ["gather", "dense"], budget_s=0.01)
    assert list(trial.seconds) == ["gather"]
    assert trial.left_out == {"dense": "out of memory"}
    with pytest.raises(RuntimeError, match="no sparse backend runs on cpu"):
        try_backends(encoder, masks(), ["dense"])


@torch.no_grad()
def test_frozen_weights_and_no_grad_are_no_hindrance(encoder):
    encoder.project.requires_grad_(False)
    assert try_backends(encoder, masks(), ["gather"], budget_s=0.01).seconds["gather"] > 0


def test_timing_changes_nothing(encoder):
    state = torch.random.get_rng_state()
    backend = encoder.backend
    weights = {name: value.clone() for name, value in encoder.state_dict().items()}
    try_backends(encoder, masks(), ["gather", "dense"], budget_s=0.01)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert encoder.backend is backend
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in encoder.state_dict().items())


def test_of_two_that_are_as_fast_the_first_is_kept():
    assert Trial({"gather": 1.04, "minkowski": 1.0, "dense": 2.0}, {}).fastest() == "gather"
    assert Trial({"gather": 1.20, "minkowski": 1.06, "dense": 1.0}, {}).fastest() == "dense"


def test_every_convolution_uses_the_backend_that_was_set():
    encoder = SparseEncoder(3, widths=(4, 6, 8), backend="dense")
    gather = make_backend("gather")
    encoder.use(gather)
    assert encoder.backend is gather
    assert {id(part.backend) for part in encoder.modules() if hasattr(part, "kernel_size")} == {id(gather)}
