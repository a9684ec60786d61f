"""The recipe at every one of its 45 epochs, against a table that was written down by hand of its description."""

import math
from pathlib import Path

import pytest
import torch

from voxelwave.jobs.reconstruct.plan import load_plan
from voxelwave.jobs.reconstruct.schedule import block_at, blocks_of
from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.sampled_lines import acceleration_of

RECIPE = Path(__file__).parents[3] / "configs" / "reconstruct" / "recipe.yaml"
NAMES = ("brain_acc4", "brain_acc8", "knee_acc4", "knee_acc8")
# Peak, epochs done where the cosine begins, and epoch at which it would be 0.
RATES = {1: (3e-4, 1, 20), 2: (2e-4, 15, 35), 3: (1e-4, 30, 45)}
PLAIN = {"flip_horizontal": 10, "translation": 10, "shear": 10, "scale": 10}  # decay of the chance
MOVES = {
    ("brain", 1): {},
    ("brain", 2): PLAIN,
    ("brain", 3): PLAIN | {"flip_vertical": 100},
    ("knee", 1): {},
    ("knee", 2): PLAIN,
    ("knee", 3): {},
}
WIDTH = 368


@pytest.fixture(scope="module")
def recipe():
    return {name: blocks_of(config.blocks) for name, config in load_plan(RECIPE).specialists.items()}


def test_there_are_four_specialists_of_three_blocks(recipe):
    assert tuple(recipe) == NAMES
    assert all([(block.first, block.last) for block in of] == [(1, 15), (16, 30), (31, 45)] for of in recipe.values())


@pytest.mark.parametrize("epoch", range(1, 46))
@pytest.mark.parametrize("name", NAMES)
def test_rate_moves_and_masks_of_an_epoch(recipe, name, epoch):
    anatomy, rate = name.split("_acc")
    number = 1 + (epoch - 1) // 15
    block = block_at(recipe[name], epoch)
    assert block.number == number
    # 1. The rate where the epoch begins and half way through it; the first block warms up over its first epoch.
    peak, begin, end = RATES[number]
    for done in (epoch - 1, epoch - 0.5):
        falling = peak / 2 * (1 + math.cos(math.pi * (done - begin) / (end - begin)))
        wanted = peak * done if done < begin else falling
        assert block.learning_rate(done) == pytest.approx(wanted, rel=1e-9, abs=1e-15)
    # 2. The chances of all moves, which grow from 0 at the end of the block before to a half.
    augment = block.augment()
    begun = epoch - 15 * (number - 1)
    for kind, decay in MOVES[anatomy, number].items():
        wanted = 0.5 * (1 - math.exp(-begun * decay / 15)) / (1 - math.exp(-decay))
        assert augment.probability(kind, epoch) == pytest.approx(wanted, rel=1e-9)
    moved = set() if augment is None else {kind for kind in augment.chances if augment.probability(kind, epoch) > 0}
    assert moved == set(MOVES[anatomy, number])
    if augment is not None:
        limits = (augment.max_translation, augment.max_shear_degrees, augment.max_scale)
        assert limits == (0.05, 5.0, 0.1)
    # 3. Masks: with the origin in their pattern and always the same, but for knees in the end.
    lines = [block.sampling()((4, WIDTH), torch_generator(draw, epoch))[0] for draw in range(24)]
    fixed = torch.zeros(WIDTH, dtype=torch.bool)
    fixed[WIDTH // 2 % int(rate) :: int(rate)] = True
    fixed[(WIDTH - 29 + 1) // 2 :][:29] = True  # 8 %
    if (anatomy, number) == ("knee", 3):
        assert len({tuple(of.tolist()) for of in lines}) > 6
        gaps = [{*of[:120].nonzero()[:, 0].diff().tolist()} for of in lines]
        assert any(of == {int(rate)} for of in gaps)  # random offset
        assert any(len(of) > 1 for of in gaps)  # random spacing
        assert all(bool(of[170:198].all()) for of in lines)
        assert all(acceleration_of(of).nominal == pytest.approx(int(rate), rel=0.1) for of in lines)
    else:
        assert all(torch.equal(of, fixed) for of in lines)


def test_the_rates_that_the_description_names(recipe):
    second, third = recipe["brain_acc4"][1:]
    assert second.learning_rate(30) == pytest.approx(2.9e-5, rel=0.02)
    assert third.learning_rate(45) == 0
