import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from voxelwave.losses.spatial_infonce import SpatialInfoNCE, spatial_infonce


def loops(anchors, candidates, places, temperature, radius=0.0):
    """The sum over anchors of −log(exp(s⁺) / Σ exp(s)), one pair at a time."""
    total = 0.0
    for i in range(len(anchors)):
        similarities = []
        for j in range(len(candidates)):
            if i == j or math.dist(places[i].tolist(), places[j].tolist()) > radius:
                cosine = F.cosine_similarity(anchors[i], candidates[j], dim=0)
                similarities.append((i == j, float(cosine) / temperature))
        positive = next(value for own, value in similarities if own)
        total += -positive + math.log(sum(math.exp(value) for _, value in similarities))
    return total


def random_grid(side=4, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    places = torch.tensor(list(itertools.product(range(side), repeat=3)))
    anchors, candidates = torch.randn(2, side**3, dim, generator=generator, dtype=torch.float64)
    return anchors, candidates, places


@pytest.mark.parametrize("radius", [0.0, 1.5])
@pytest.mark.parametrize("chunk_size", [7, 64, 512])
def test_equals_the_plain_loops_on_4_cubed(chunk_size, radius):
    anchors, candidates, places = random_grid()
    loss, _ = spatial_infonce(
        anchors, candidates, places, temperature=0.07, exclusion_radius=radius, chunk_size=chunk_size
    )
    assert float(loss) == pytest.approx(loops(anchors, candidates, places, 0.07, radius), abs=1e-5)


def test_chunks_give_the_gradients_of_the_whole():
    gradients = []
    for chunk_size in (10, 64):
        anchors, candidates, places = random_grid()
        anchors.requires_grad_()
        candidates.requires_grad_()
        spatial_infonce(anchors, candidates, places, temperature=0.1, chunk_size=chunk_size)[0].backward()
        gradients.append((anchors.grad, candidates.grad))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_gradient_is_that_of_finite_differences():
    anchors, candidates, places = (x[:9] for x in random_grid())
    anchors.requires_grad_()
    candidates.requires_grad_()

    def loss(a, c):
        return spatial_infonce(a, c, places, temperature=0.5, exclusion_radius=1.0, chunk_size=4)[0]

    assert torch.autograd.gradcheck(loss, (anchors, candidates))


def test_features_that_match_by_place_are_all_aligned_and_shuffled_ones_are_not():
    anchors, _, places = random_grid()
    _, hits = spatial_infonce(anchors, anchors, places, temperature=0.07)
    assert int(hits) == 64
    _, hits = spatial_infonce(anchors, anchors.roll(1, 0), places, temperature=0.07)
    assert int(hits) == 0


def test_module_equals_the_loops_on_each_volumes_counted_places():
    torch.manual_seed(0)
    module = SpatialInfoNCE((5, 6), temperature=0.2, projection_dim=4, chunk_size=8).double()
    shallow, deep = (
        torch.randn(2, 5, 3, 3, 3, dtype=torch.float64),
        torch.randn(2, 6, 3, 3, 3, dtype=torch.float64),
    )
    counted = torch.rand(2, 3, 3, 3) < 0.6
    loss, alignment = module(shallow, deep, counted)
    total, anchors_seen = 0.0, 0
    for sample in range(2):
        inside = counted[sample]
        anchors = module.shallow(shallow[sample].movedim(0, -1)[inside])
        candidates = module.deep(deep[sample].movedim(0, -1)[inside])
        total += loops(anchors.detach(), candidates.detach(), inside.nonzero(), 0.2)
        anchors_seen += len(anchors)
    assert float(loss.detach()) == pytest.approx(total / anchors_seen, abs=1e-9)
    assert 0.0 <= float(alignment) <= 1.0


def test_grids_of_different_size_are_compared_on_their_common_extent():
    torch.manual_seed(0)
    module = SpatialInfoNCE((5, 5)).double()
    shallow, deep = (
        torch.randn(1, 5, 4, 4, 4, dtype=torch.float64),
        torch.randn(1, 5, 3, 4, 2, dtype=torch.float64),
    )
    everything = torch.ones(1, 4, 4, 4, dtype=torch.bool)
    cropped, _ = module(shallow[:, :, :3, :, :2], deep, everything[:, :3, :, :2])
    torch.testing.assert_close(module(shallow, deep, everything)[0], cropped)


def test_nothing_to_contrast_is_zero_and_trainable():
    module = SpatialInfoNCE((5, 5))
    shallow = torch.randn(2, 5, 2, 2, 2, requires_grad=True)
    counted = torch.zeros(2, 2, 2, 2, dtype=torch.bool)
    counted[0, 0, 0, 0] = True  # a single place has no negative
    loss, alignment = module(shallow, shallow, counted)
    loss.backward()
    assert loss == 0
    assert alignment == 0
    assert shallow.grad is not None


def test_temperature_must_be_positive():
    with pytest.raises(ValueError, match="temperature must be above 0"):
        SpatialInfoNCE((4, 4), temperature=0.0)
