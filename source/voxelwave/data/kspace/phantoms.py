"""Random phantoms as several coils see them, and triplets of views of them: one item at a time, or a batch at once.

Every number drawn is keyed by what it is for, so that an item depends neither on workers nor on the order of items.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import Dataset

from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.coil_maps import batched_birdcage_maps
from voxelwave.physics.phantoms2d import draw_phantoms, draw_phases

Magnitudes = Float[Tensor, "batch height width"]
CoilPairs = Float[Tensor, "coil height width 2"]
ManyCoilPairs = Float[Tensor, "batch coil height width 2"]
Triplet = tuple[Tensor, Tensor, Tensor]

# Anatomies are kept after they were first rendered, up to this many bytes.
KEPT_BYTES = 2**28


class RandomPhantomDataset(Dataset[CoilPairs]):
    """Item i is phantom `offset + i` of a seed as `num_coils` coils see it, as real pairs `[coil, height, width, 2]`.

    The anatomy of an index never changes. Coils, phase and noise are the same every time where `deterministic`, else
    anew in each epoch, see `set_epoch`. Data sets of one seed share a phantom only where their ranges
    `offset … offset + length - 1` meet.

    Args:
        length: the number of phantoms.
        image_size: pixels along each side.
        noise: standard deviation of the complex noise of each coil; the phantoms have a mean of 0.25, and the squared
            magnitudes of the coils' maps sum to 1.

    Raises ValueError for settings out of range.
    """

    def __init__(
        self,
        length: int,
        *,
        image_size: int = 128,
        num_coils: int = 8,
        seed: int = 0,
        offset: int = 0,
        deterministic: bool = True,
        noise: float = 0.01,
    ) -> None:
        if length < 1 or offset < 0:
            raise ValueError(f"length must be at least 1 and offset at least 0, got {length} and {offset}")
        if num_coils < 1 or not 0 <= noise < math.inf:
            raise ValueError(
                f"num_coils must be at least 1, and noise at least 0 and finite, got {num_coils} and {noise}"
            )
        self.length, self.image_size, self.num_coils, self.noise = length, image_size, num_coils, noise
        self.seed, self.offset, self.deterministic, self.epoch = seed, offset, deterministic, 0
        self._kept: dict[int, Tensor] = {}
        # What cannot be rendered is said here, not in the first batch.
        self.anatomies([0])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> CoilPairs:
        """Return one item; a negative index counts from the end. Raises IndexError for one beyond it."""
        return self.items([index])[0]

    def set_epoch(self, epoch: int) -> None:
        """Draw coils, phases and noise anew, unless `deterministic`; workers of a loader have to start after this."""
        self.epoch = epoch

    def key(self, purpose: str, index: int) -> tuple[int | str, ...]:
        """Return the key of the generator for what is drawn for one index, in this epoch unless `deterministic`."""
        number = self.offset + self.checked(index)
        return (self.seed, purpose, number) if self.deterministic else (self.seed, purpose, number, self.epoch)

    def checked(self, index: int) -> int:
        """Return `index` counted from the start; raises IndexError where there is no such item."""
        index = operator.index(index)
        if not -self.length <= index < self.length:
            raise IndexError(f"index {index} is out of range: there are {self.length} phantoms")
        return index % self.length

    def anatomies(self, indices: Sequence[int]) -> Magnitudes:
        """Return the magnitudes of phantoms, without coils, phase and noise; those not kept are rendered together."""
        numbers = [self.offset + self.checked(index) for index in indices]
        missing = sorted(set(numbers) - self._kept.keys())
        generators = [torch_generator(self.seed, "phantom", number) for number in missing]
        found = dict(zip(missing, draw_phantoms(generators, size=self.image_size), strict=True)) | self._kept
        room = KEPT_BYTES // (4 * self.image_size**2) - len(self._kept)
        # A copy of its own does not keep the batch that it was rendered in.
        self._kept.update({number: found[number].clone() for number in missing[: max(room, 0)]})
        return torch.stack([found[number] for number in numbers])

    def items(self, indices: Sequence[int], *, scan: int = 0) -> ManyCoilPairs:
        """Return the items of `indices` as `__getitem__` gives them, in less time.

        Another number of the `scan` gives the same phantoms with other coils, phase and noise.
        """
        return self.scanned(indices, self.anatomies(indices), scan=scan)

    def scanned(self, indices: Sequence[int], anatomies: Magnitudes, *, scan: int = 0) -> ManyCoilPairs:
        """Return the items of `indices`, whose `anatomies` are at hand."""
        generators = [torch_generator(*self.key("scan", index), scan) for index in indices]
        shape = (self.image_size, self.image_size)
        images = torch.polar(anatomies, draw_phases(generators, size=self.image_size))
        pairs = torch.empty(len(indices), self.num_coils, *shape, 2)
        # A sample fits into the cache of a core; operations on whole batches take several times as long.
        for image, generator, sample in zip(images, generators, pairs, strict=True):
            radius, turn, phase, down, right = torch.rand(5, 1, generator=generator)
            maps = batched_birdcage_maps(
                self.num_coils,
                shape,
                relative_radius=1.35 + 0.3 * radius,
                rotation=2 * math.pi * turn,
                shift=0.2 * torch.stack([down, right], 1) - 0.1,
                phase=2 * math.pi * phase,
            )
            # Each part has half of the variance.
            sample.normal_(std=self.noise / math.sqrt(2), generator=generator)
            torch.view_as_complex(sample).addcmul_(image, maps[0])
        return pairs


class RandomPhantomTripletDataset(Dataset[Triplet]):
    """Item i is `(same1, same2, diff)`: phantom i under two pipelines, and another phantom under the second one.

    The other phantom is drawn anew in each epoch, unless the phantoms are `deterministic`. Its pipeline is that of
    same2, so that same2 and diff, which are compared with same1, differ in nothing but the phantom; in retrieval, too,
    the second views are searched for the first.

    Args:
        phantoms: at least two, else ValueError.
        first: called as `first(pairs, generator)` on an item, such as a `ComplexPipeline`.
        second: alike.
        rescan: take same2 from another scan of phantom i. In one and the same scan the coils, too, tell which phantom
            it is: how strong each of them is, is as good as a fingerprint.
    """

    def __init__(
        self, phantoms: RandomPhantomDataset, first: nn.Module, second: nn.Module, *, rescan: bool = False
    ) -> None:
        if len(phantoms) < 2:
            raise ValueError(f"a triplet needs another phantom: give at least two, got {len(phantoms)}")
        self.phantoms, self.first, self.second, self.rescan = phantoms, first, second, rescan

    def __len__(self) -> int:
        return len(self.phantoms)

    def __getitem__(self, index: int) -> Triplet:
        """Return one triplet of what the pipelines return; raises IndexError for an index beyond the end."""
        same1, same2, diff = self.triplets([index])[:, 0]
        return same1, same2, diff

    def set_epoch(self, epoch: int) -> None:
        """Draw anew whatever is random, unless the phantoms are `deterministic`."""
        self.phantoms.set_epoch(epoch)

    def other(self, index: int) -> int:
        """Return the index of the other phantom of a triplet, each as likely as any."""
        generator = torch_generator(*self.phantoms.key("other", index))
        step = 1 + int(torch.randint(len(self) - 1, (), generator=generator))
        return (self.phantoms.checked(index) + step) % len(self)

    def triplets(self, indices: Sequence[int]) -> Float[Tensor, "3 batch ..."]:
        """Return the triplets of `indices` as `__getitem__` gives them, in less time."""
        others = [self.other(index) for index in indices]
        # Anatomies are rendered together; what is as large as all coils is done one by one, as in `scanned`.
        anatomies = self.phantoms.anatomies([*indices, *others]).unflatten(0, (2, -1)).unbind(1)
        views = [self._views(*each) for each in zip(indices, others, anatomies, strict=True)]
        # One by one, so that nothing as large as the batch is copied twice.
        batch: Tensor = torch.stack([one for each in zip(*views, strict=True) for one in each]).unflatten(0, (3, -1))
        return batch

    def _views(self, index: int, other: int, anatomies: Magnitudes) -> Triplet:
        scan, of_other = self.phantoms.scanned([index, other], anatomies)
        again = self.phantoms.scanned([index], anatomies[:1], scan=1)[0] if self.rescan else scan
        drawn = (torch_generator(*self.phantoms.key(view, index)) for view in ("same1", "same2", "diff"))
        return self.first(scan, next(drawn)), self.second(again, next(drawn)), self.second(of_other, next(drawn))
