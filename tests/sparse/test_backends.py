import copy
import itertools
import os
import pickle
import sys
from importlib import metadata

import pytest
import torch

from support.command import process
from support.masks import blocks
from voxelwave.errors import InputError
from voxelwave.sparse import minkowski as minkowski_module
from voxelwave.sparse.backends import NAMES, SparseBackend, make_backend, why_not
from voxelwave.sparse.encoder import SparseEncoder
from voxelwave.sparse.minkowski import _Map
from voxelwave.sparse.volume import Sites, SparseVolume

WIDTHS = (8, 12, 16)


def random_volume(active, channels=3, dtype=torch.float64):
    torch.manual_seed(0)
    return SparseVolume.at(torch.randn(len(active), channels, *active.shape[1:], dtype=dtype), active)


def parameters(*shape, dtype=torch.float64):
    torch.manual_seed(1)
    return torch.randn(*shape, dtype=dtype), torch.randn(shape[0], dtype=dtype)


def close(result, expected, relative):
    """The largest difference, over the largest value."""
    largest = expected.abs().max() if expected.numel() else 0.0
    return result.shape == expected.shape and bool(((result - expected).abs() <= relative * largest).all())


def test_submanifold_convolution_equals_loops_over_active_sites(sparse_backend):
    volume = random_volume(blocks((4, 5, 6), side=1, share=0.4, batch=2))
    weight, bias = parameters(2, 3, 3, 3, 3)
    features, active = volume.densify(), volume.sites.active
    expected = torch.zeros(2, 2, 4, 5, 6, dtype=torch.float64)
    for sample, d, h, w in active.nonzero().tolist():
        value = bias.clone()
        for i, j, k in itertools.product(range(3), repeat=3):
            x, y, z = d + i - 1, h + j - 1, w + k - 1
            if 0 <= x < 4 and 0 <= y < 5 and 0 <= z < 6 and active[sample, x, y, z]:
                value += weight[:, :, i, j, k] @ features[sample, :, x, y, z]
        expected[sample, :, d, h, w] = value
    result = make_backend(sparse_backend).convolve(volume, weight, bias)
    torch.testing.assert_close(result.densify(), expected)
    assert torch.equal(result.sites.active, active)


@pytest.mark.parametrize("grid", [(4, 4, 6), (3, 5, 4)])
def test_strided_convolution_is_active_where_any_of_its_eight_sites_was(sparse_backend, grid):
    volume = random_volume(blocks(grid, side=1, share=0.1, batch=2))
    weight, bias = parameters(2, 3, 2, 2, 2)
    features, active = volume.densify(), volume.sites.active
    result = make_backend(sparse_backend).downsample(volume, weight, bias)
    coarse = result.densify()
    assert coarse.shape[2:] == tuple(-(-side // 2) for side in grid)
    for sample, (d, h, w) in itertools.product(range(2), itertools.product(*map(range, coarse.shape[2:]))):
        inside = (slice(2 * d, 2 * d + 2), slice(2 * h, 2 * h + 2), slice(2 * w, 2 * w + 2))
        seen = bool(active[(sample, *inside)].any())
        block = features[(sample, slice(None), *inside)]
        value = torch.einsum("ocijk,cijk->o", weight[..., : block.shape[1], : block.shape[2], : block.shape[3]], block)
        torch.testing.assert_close(coarse[sample, :, d, h, w], (value + bias) * seen)
        assert bool(result.sites.active[sample, d, h, w]) == seen


def one_site(grid):
    active = torch.zeros(1, *grid, dtype=torch.bool)
    active[0, 2, 1, 3] = True
    return active


def one_sample_without_sites(grid):
    active = blocks(grid, side=2, share=0.4, batch=3)
    active[1] = False
    return active


def permuted(grid):
    """With the strides of another order of axes, which torch takes for contiguous where a side is 1."""
    depth, height, width = grid
    return (torch.rand(2, height, width, depth, generator=torch.Generator().manual_seed(0)) < 0.5).permute(0, 3, 1, 2)


MASKS = {
    f"side {side}, batch {batch}, {'×'.join(map(str, grid))}": blocks(
        grid, side=side, share=0.4, batch=batch, seed=batch
    )
    for side in (1, 2, 4)
    for batch in (1, 2, 3)
    for grid in ((8, 8, 8), (8, 12, 4), (7, 5, 6))
} | {
    "one site": one_site((6, 4, 8)),
    "all sites": torch.ones(2, 6, 4, 8, dtype=torch.bool),
    "a sample without sites": one_sample_without_sites((4, 6, 4)),
    "no sites": torch.zeros(2, 4, 4, 4, dtype=torch.bool),
    "a depth of 1, permuted": permuted((1, 6, 5)),
    "permuted": permuted((4, 6, 5)),
}


@pytest.mark.parametrize("other", ["gather", "minkowski"])
@pytest.mark.parametrize("mask", MASKS)
def test_backends_agree_on_outputs_and_on_every_gradient(mask, other, request):
    name = request.getfixturevalue("minkowski") if other == "minkowski" else other
    torch.manual_seed(0)
    dense = SparseEncoder(5, widths=WIDTHS, backend="dense")
    # The weights of a new network are too small to tell much.
    torch.nn.utils.vector_to_parameters(
        0.3 * torch.randn(sum(p.numel() for p in dense.parameters())), dense.parameters()
    )
    sparse = SparseEncoder(5, widths=WIDTHS, backend=name)
    sparse.load_state_dict(dense.state_dict())
    volume = random_volume(MASKS[mask], channels=5, dtype=torch.float32)
    results = []
    for encoder in (dense, sparse):
        features = volume.features.clone().requires_grad_()
        scales = encoder(SparseVolume(features, Sites(MASKS[mask])))
        torch.manual_seed(2)
        sum((scale.features * torch.randn_like(scale.features)).sum() for scale in scales).backward()
        results.append((scales, features.grad, {name: p.grad for name, p in encoder.named_parameters()}))
    (expected, of_features, of_weights), (scales, of_features_too, of_weights_too) = results
    for scale, twin in zip(scales, expected, strict=True):
        assert torch.equal(scale.sites.active, twin.sites.active)
        assert close(scale.features, twin.features, 1e-5)
    assert close(of_features_too, of_features, 1e-4)
    for key, gradient in of_weights.items():
        assert close(of_weights_too[key], gradient, 1e-4), key


def test_results_repeat_bit_for_bit(sparse_backend):
    """With several threads too: an exact resume is promised."""
    torch.manual_seed(0)
    encoder = SparseEncoder(5, widths=(32, 48), backend=sparse_backend)
    active = blocks((12, 12, 12), side=2, share=0.4, batch=2)
    features = torch.randn(int(active.sum()), 5)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        runs = []
        for _ in range(5):
            encoder.zero_grad()
            sum(scale.features.square().sum() for scale in encoder(SparseVolume(features, Sites(active)))).backward()
            runs.append(torch.cat([p.grad.flatten() for p in encoder.parameters()]))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(run, runs[0]) for run in runs)


def test_inactive_sites_reach_nothing_at_any_scale(sparse_backend):
    """Neither what stands there, nor, through it, a gradient."""
    torch.manual_seed(0)
    encoder = SparseEncoder(3, widths=WIDTHS, backend=sparse_backend).double()
    active = blocks((8, 8, 8), side=1, share=0.4, batch=2)
    features = torch.randn(2, 3, 8, 8, 8, dtype=torch.float64)
    results = []
    for filling in (0.0, torch.inf):
        grid = features.masked_fill(~active.unsqueeze(1), filling).requires_grad_()
        encoder.zero_grad()
        scales = encoder(SparseVolume.at(grid, active))
        sum(scale.features.square().sum() for scale in scales).backward()
        assert [scale.sites.grid for scale in scales] == [(8,) * 3, (4,) * 3, (2,) * 3]
        assert (grid.grad.masked_fill(active.unsqueeze(1), 0.0) == 0.0).all()
        results.append(torch.cat([grid.grad.flatten(), *(p.grad.flatten() for p in encoder.parameters())]))
    assert torch.equal(*results)


def test_no_active_site_at_all_is_an_empty_result(sparse_backend):
    encoder = SparseEncoder(3, widths=WIDTHS, backend=sparse_backend)
    scales = encoder(SparseVolume.at(torch.randn(2, 3, 4, 4, 4), torch.zeros(2, 4, 4, 4, dtype=torch.bool)))
    assert [tuple(scale.features.shape) for scale in scales] == [(0, width) for width in WIDTHS]
    assert [scale.sites.grid for scale in scales] == [(4,) * 3, (2,) * 3, (1,) * 3]


def test_weights_have_the_shapes_of_conv3d_whatever_the_backend(sparse_backend, tmp_path):
    encoder = SparseEncoder(3, widths=WIDTHS, backend=sparse_backend)
    assert encoder.refine[1].conv.weight.shape == (12, 12, 3, 3, 3)
    assert encoder.down[0].weight.shape == (12, 8, 2, 2, 2)
    torch.save(encoder.state_dict(), tmp_path / "weights.pth")
    dense = SparseEncoder(3, widths=WIDTHS, backend="dense")
    dense.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
    for key, value in encoder.state_dict().items():
        assert torch.equal(dense.state_dict()[key], value)
    # In memory as the sparse backends multiply with it, also after loading and copying.
    for module in (encoder, dense, copy.deepcopy(encoder)):
        assert module.refine[1].conv.weight.permute(2, 3, 4, 1, 0).is_contiguous()


def test_an_encoder_and_its_volumes_can_be_copied(sparse_backend):
    """A moving average, and every process that is spawned, takes a copy."""
    encoder = SparseEncoder(3, widths=WIDTHS, backend=sparse_backend)
    volume = random_volume(blocks((4, 4, 4), side=2, share=0.4, batch=1), dtype=torch.float32)
    twin = copy.deepcopy(encoder)
    assert torch.equal(twin(volume)[-1].features, encoder(volume)[-1].features)
    again = pickle.loads(pickle.dumps(copy.deepcopy(volume)))
    assert torch.equal(encoder(again)[-1].features, encoder(volume)[-1].features)


def test_rows_in_another_order_are_put_back(minkowski):
    """On a GPU the engine orders its sites as it likes."""
    order = torch.tensor([2, 0, 3, 1])
    other = _Map(manager=None, key=None, order=order)
    features = torch.randn(4, 3)
    assert torch.equal(other.into(features)[0], features[2])
    assert torch.equal(other.out_of(other.into(features)), features)


def test_half_precision_is_summed_in_full_precision():
    """The 27 products of gather; added up in bf16 they would be off by several of its last bits."""
    torch.manual_seed(0)
    weight, bias = torch.randn(4, 64, 3, 3, 3), torch.zeros(4)
    volume = random_volume(torch.ones(1, 8, 8, 8, dtype=torch.bool), channels=64, dtype=torch.float32)
    rounded = SparseVolume(volume.features.bfloat16().float(), volume.sites)
    exact = make_backend("dense").convolve(rounded, weight.bfloat16().float(), bias).features
    with torch.autocast("cpu", torch.bfloat16):
        half = make_backend("gather").convolve(rounded, weight, bias).features
    assert half.dtype is torch.bfloat16
    assert ((half.float() - exact).square().mean() / exact.square().mean()).sqrt() < 2.5e-3


def test_autocast_leaves_double_precision_alone(sparse_backend):
    volume = random_volume(blocks((4, 4, 4), side=2, share=0.4, batch=1))
    weight, bias = parameters(2, 3, 3, 3, 3)
    expected = make_backend("dense").convolve(volume, weight, bias).features
    with torch.autocast("cpu", torch.bfloat16):
        result = make_backend(sparse_backend).convolve(volume, weight, bias).features
    torch.testing.assert_close(result, expected)


def test_autocast_around_backward_changes_no_gradient(sparse_backend):
    volume = random_volume(blocks((6, 6, 6), side=2, share=0.4, batch=2), dtype=torch.float32)
    weight, bias = parameters(2, 3, 3, 3, 3, dtype=torch.float32)
    gradients = []
    for half in (False, True):
        weight.requires_grad_().grad = None
        loss = make_backend(sparse_backend).convolve(volume, weight, bias).features.square().sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss.backward()
        gradients.append(weight.grad)
    assert close(*gradients, 1e-5)


def test_half_precision_stays_near_full_precision(sparse_backend):
    torch.manual_seed(0)
    encoder = SparseEncoder(16, widths=(32,), backend=sparse_backend)
    volume = random_volume(blocks((8, 8, 8), side=4, share=0.4, batch=2), channels=16, dtype=torch.float32)
    full = encoder(volume)[0].features
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder(volume)[0].features
    assert close(half.float(), full, 0.02)
    half.float().square().sum().backward()
    gradient = encoder.refine[0].conv.weight.grad
    encoder.zero_grad()
    full.square().sum().backward()
    assert close(gradient, encoder.refine[0].conv.weight.grad, 0.03)


COMPILED = """
import sys, torch
from support.masks import blocks
from voxelwave.sparse.encoder import SparseEncoder
from voxelwave.sparse.volume import SparseVolume
for name in sys.argv[1:]:
    torch.compiler.reset()
    torch.manual_seed(0)
    encoder = SparseEncoder(3, widths=(8, 12, 16), backend=name)
    compiled = torch.compile(encoder, backend="aot_eager")
    for seed in range(3):
        volume = SparseVolume.at(torch.randn(2, 3, 6, 6, 6), blocks((6, 6, 6), side=2, share=0.4, batch=2, seed=seed))
        gradients = []
        for module in (encoder, compiled):
            encoder.zero_grad()
            sum(scale.features.square().sum() for scale in module(volume)).backward()
            gradients.append(torch.cat([parameter.grad.flatten() for parameter in encoder.parameters()]))
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    print(name)
"""


@pytest.fixture(scope="module")
def compiled():
    """One process for every backend, since what checks types in the tests cannot be compiled; it prints what agreed."""
    names = [name for name in NAMES if why_not(name, torch.device("cpu")) is None]
    return process("-c", COMPILED, *names, PYTHONPATH=os.pathsep.join(sys.path))


def test_an_encoder_can_be_compiled(compiled, sparse_backend):
    assert sparse_backend in compiled.out.split(), compiled.err


def missing(package):
    raise metadata.PackageNotFoundError(package)


@pytest.mark.parametrize(
    ("version", "loads", "message"),
    [
        ("0.5.4+torch1.0.0.cpu.abc", True, "was built for torch 1.0.0, and this is"),
        ("0.5.4", False, "cannot be imported"),
    ],
)
def test_a_minkowskiengine_that_does_not_fit_is_one_line(monkeypatch, version, loads, message):
    monkeypatch.setattr(minkowski_module.metadata, "version", lambda package: version)
    if not loads:
        monkeypatch.setitem(sys.modules, "MinkowskiEngine", None)
    with pytest.raises(InputError, match=message) as caught:
        make_backend("minkowski")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_backends_are_what_they_are_called(name, request):
    if name == "minkowski":
        request.getfixturevalue("minkowski")
    backend = make_backend(name)
    assert isinstance(backend, SparseBackend)
    assert backend.name == name
    assert why_not(name, torch.device("cpu")) is None


def test_an_unknown_backend_is_named():
    with pytest.raises(InputError, match="unknown sparse backend 'cuda': use auto, gather, minkowski, dense"):
        SparseEncoder(3, backend="cuda")


def test_a_missing_minkowskiengine_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(minkowski_module.metadata, "version", missing)
    with pytest.raises(InputError, match=r"not installed: docker/install_minkowski\.sh"):
        make_backend("minkowski")
    assert "gather does without" in why_not("minkowski", torch.device("cpu"))
    assert make_backend("auto").name == "gather"


def test_minkowskiengine_leaves_path_and_environment_alone(minkowski):
    code = (
        "import os, sys; os.environ.pop('OMP_NUM_THREADS', None); os.cpu_count = lambda: 64; before = list(sys.path)\n"
        "from voxelwave.sparse.backends import make_backend; make_backend('minkowski')\n"
        "print(sys.path == before, 'OMP_NUM_THREADS' in os.environ)"
    )
    ended = process("-W", "error", "-c", code)
    assert (ended.code, ended.out.strip(), ended.err) == (0, "True False", "")


def test_this_build_has_no_gpu_and_says_so(minkowski):
    import MinkowskiEngine

    if MinkowskiEngine.is_cuda_available():
        pytest.skip("this MinkowskiEngine was built with CUDA")
    assert "built without CUDA" in why_not("minkowski", torch.device("cuda"))
    assert "not on mps" in why_not("minkowski", torch.device("mps"))
