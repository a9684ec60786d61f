import os

import pytest
import torch

from voxelwave.engine.determinism import WORKSPACE, deterministic_algorithms
from voxelwave.errors import InputError


def settings():
    return torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark, os.environ.get(WORKSPACE)


@pytest.mark.parametrize(("given", "used"), [(None, ":16:8"), (":4096:8", ":4096:8"), (":0:0", ":16:8")])
def test_kernels_are_deterministic_within_and_as_before_afterwards(monkeypatch, given, used):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    if given is None:
        monkeypatch.delenv(WORKSPACE, raising=False)
    else:
        monkeypatch.setenv(WORKSPACE, given)
    with deterministic_algorithms():
        assert settings() == (True, False, used)
    assert settings() == (False, True, given)
    with pytest.raises(KeyError), deterministic_algorithms():
        raise KeyError
    assert settings() == (False, True, given)


def test_nothing_changes_where_it_is_off():
    before = settings()
    with deterministic_algorithms(enabled=False):
        assert settings() == before
        torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))


class Unrepeatable(torch.autograd.Function):
    """An operation of which only the gradient has no deterministic kernel."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.clone().put_(torch.tensor([0]), torch.ones(1))


@pytest.mark.parametrize(
    "compute",
    [
        lambda: torch.zeros(2).put_(torch.tensor([0]), torch.ones(1)),
        lambda: Unrepeatable.apply(torch.zeros(2, requires_grad=True)).sum().backward(),
    ],
    ids=["forward", "backward"],
)
def test_an_operation_without_a_deterministic_kernel_is_named(compute):
    named = pytest.raises(InputError, match=r"^the operation put_ has .*set training.deterministic=false")
    with named as raised, deterministic_algorithms():
        compute()
    assert "\n" not in str(raised.value)


def test_a_process_whose_cublas_was_told_nothing_is_told_what_to_set():
    torchs = (
        "Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)` "
        "or `at::Context::setDeterministicAlgorithms(true)`, but this operation is not deterministic"
    )
    with pytest.raises(InputError, match=f"set {WORKSPACE}=:16:8 in its environment"), deterministic_algorithms():
        raise RuntimeError(torchs)


def test_any_other_error_is_raised_as_it_is():
    with pytest.raises(RuntimeError, match="shapes"), deterministic_algorithms():
        raise RuntimeError("shapes")
