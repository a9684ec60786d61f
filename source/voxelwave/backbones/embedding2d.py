"""Models that turn a 2D multi-coil image into one vector: a small convolutional one, and any encoder of timm."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from difflib import get_close_matches
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from voxelwave.ops.evaluating import evaluating
from voxelwave.ops.torchvision_operators import make_torchvision_importable
from voxelwave.registry import EMBEDDINGS

Images = Float[Tensor, "batch channel height width"]


class EmbeddingModel(nn.Module, ABC):
    """What both models share: a head over the encoder's features, and vectors of unit length.

    Raises ValueError for a size below 1.
    """

    head: nn.Sequential

    def __init__(self, in_channels: int, *, embed_dim: int, normalize: bool) -> None:
        super().__init__()
        if min(embed_dim, in_channels) < 1:
            raise ValueError(f"in_channels and embed_dim must be at least 1, got {in_channels} and {embed_dim}")
        self.in_channels = in_channels
        self.embed_dim = embed_dim
        self.normalize = normalize

    @abstractmethod
    def features(self, images: Images) -> Float[Tensor, "batch feature"]:
        """Return what the encoder makes of each image, pooled over its area."""

    def forward(self, images: Images, normalize: bool | None = None) -> Float[Tensor, "batch embed"]:
        """Return a vector an image, at least float32; `normalize` overrides the constructor's choice of unit length.

        Raises ValueError for images of another channel count than that of the model.
        """
        if images.shape[1] != self.in_channels:
            raise ValueError(
                f"this model reads {self.in_channels} channels (two for each coil), got {images.shape[1]}: "
                f"make another one for them"
            )
        vectors: Tensor = self.head(self.features(images))
        # Under autocast they may come in half precision, in which a distance of unit vectors has three digits.
        vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
        unit = self.normalize if normalize is None else normalize
        return F.normalize(vectors, dim=-1) if unit else vectors

    def combine_coils(self) -> None:
        """Make random weights combine the coils, where the model has a way to; see `MRIEmbeddingModel`."""

    @torch.no_grad()
    def centre(self, images: Images) -> None:
        """Move the last bias so that the mean vector of `images` becomes 0; meant for random weights.

        The mean of random features is several times as long as their differences. A loss of unit vectors then sees
        hardly a difference, and pulls all vectors into one point before it learns to tell them apart.
        Source: Salimans and Kingma, Weight Normalization, 2016, section 3: initialisation by data.
        """
        last = self.head[-1]
        assert isinstance(last, nn.Linear)
        with evaluating(self):
            last.bias.sub_(self(images, normalize=False).mean(0))

    def embed(self, images: Images, normalize: bool | None = True) -> Float[Tensor, "batch embed"]:
        """Return the vectors without gradient and as in evaluation; every part keeps the mode that it was in.

        They have unit length unless `normalize` is False; None leaves that to the constructor's choice.
        """
        with evaluating(self):
            vectors: Tensor = self(images, normalize)
        return vectors


@EMBEDDINGS.register("mri_embedding")
class MRIEmbeddingModel(EmbeddingModel):
    """A stem and one stage a width, each of which halves the image; the mean over the area goes to the head.

    `in_channels` is two for each coil. `use_mlp_head` puts a hidden layer of 2 × embed_dim before the embedding.
    Raises ValueError for settings out of range.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        embed_dim: int = 256,
        widths: tuple[int, ...] = (32, 64, 128, 256),
        dropout: float = 0.0,
        normalize: bool = True,
        use_mlp_head: bool = False,
    ) -> None:
        super().__init__(in_channels, embed_dim=embed_dim, normalize=normalize)
        if not widths or min(widths) < 1 or not 0 <= dropout < 1:
            raise ValueError(
                f"widths must be one or more, each at least 1, and dropout at least 0 and below 1, "
                f"got {widths} and {dropout}"
            )
        stages = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, width, 3, stride=2, padding=1),
                    _group_norm(width),
                    nn.GELU(),
                    nn.Dropout(dropout),
                )
                for before, width in zip((widths[0], *widths), widths, strict=False)
            )
        )
        head = _head(widths[-1], embed_dim, use_mlp_head)
        for module in stages.modules():
            _initialize_convolution(module)
        # The stem takes its random numbers last, so that those of a seed stay what they were in 0.1.0.
        convolution = nn.Conv2d(in_channels, widths[0], 3, stride=2, padding=1)
        _initialize_convolution(convolution)
        self.stem = nn.Sequential(convolution, _group_norm(widths[0]), nn.GELU())
        self.stages, self.head = stages, head

    @torch.no_grad()
    def combine_coils(self) -> None:
        """Let stem and first stage combine the magnitudes of all coils alike; meant for random weights.

        Every four filters of the stem see one coil by one complex kernel: real and imaginary part of what it responds,
        and both with the other sign. Their GELUs together follow its magnitude, the norm of the four takes the strength
        of the coil away, and the first stage adds up all coils. What differs between two scans of a phantom is then
        small. With other random weights it is most of what the vectors show, and to unlearn it took epochs. Where coils
        outnumber the fours, several share one; where there are fewer, more kernels see each.
        """
        # Of each the weight of the convolution, which comes first.
        stem, first = next(self.stem.parameters()), next(self.stages.parameters())
        fours, coils = len(stem) // 4, stem.shape[1] // 2
        if not fours or stem.shape[1] % 2:
            return
        apart = min(fours, coils)
        kernels, spatial = stem.clone() * coils**0.5, first.clone()
        for four in range(fours):
            number, rows = four // apart, slice(4 * four, 4 * four + 4)
            real, imaginary = kernels[number, :2]
            parts = torch.stack([torch.stack([real, -imaginary]), torch.stack([imaginary, real])])
            stem[rows] = 0
            for coil in range(four % apart, coils, apart):
                stem[rows, 2 * coil : 2 * coil + 2] = torch.cat([parts, -parts])
            first[:, rows] = 2 * spatial[:, 4 * number : 4 * number + 4].mean(1, keepdim=True)

    def features(self, images: Images) -> Float[Tensor, "batch feature"]:
        """Return the features of the last stage, averaged over the area."""
        grid: Tensor = self.stages(self.stem(images))
        return grid.mean((2, 3))


@EMBEDDINGS.register("timm")
class TimmEmbedding(EmbeddingModel):
    """Any encoder of timm, by its name there, with random weights and `in_channels` input channels.

    Encoders with a position for each of their patches, such as DeiT, are made for one `image_size` (side, or height
    and width, in pixels); others take any. Nothing is downloaded.

    Raises ValueError for a name that timm does not know, and where an image size is missing or does not fit.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        encoder: str = "resnet18",
        embed_dim: int = 256,
        image_size: int | tuple[int, int] | None = None,
        normalize: bool = True,
        use_mlp_head: bool = False,
    ) -> None:
        super().__init__(in_channels, embed_dim=embed_dim, normalize=normalize)
        make_torchvision_importable()
        import timm

        if not timm.is_model(encoder):
            near = get_close_matches(encoder, timm.list_models(), n=5)
            hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() names all"
            raise ValueError(f"timm has no encoder '{encoder}': {hint}")
        self.image_size: tuple[int, int] | None = None
        if getattr(timm.models.get_pretrained_cfg(encoder), "fixed_input_size", False):
            if image_size is None:
                raise ValueError(f"the encoder '{encoder}' is made for one image size: give image_size in pixels")
            self.image_size = (image_size, image_size) if isinstance(image_size, int) else image_size
        size = {} if self.image_size is None else {"img_size": self.image_size}
        try:
            self.encoder = timm.create_model(encoder, pretrained=False, num_classes=0, in_chans=in_channels, **size)
        except (TypeError, AssertionError) as error:
            raise ValueError(f"timm cannot make '{encoder}' of {in_channels} channels {size}: {error}") from error
        self._check_patches(encoder)
        self.head = _head(getattr(self.encoder, "head_hidden_size", self.encoder.num_features), embed_dim, use_mlp_head)

    def features(self, images: Images) -> Float[Tensor, "batch feature"]:
        """Return the encoder's features, pooled as it does; raises ValueError for images of another size."""
        if self.image_size not in (None, tuple(images.shape[2:])):
            raise ValueError(
                f"this encoder was made for images of {self.image_size} pixels, got {tuple(images.shape[2:])}: "
                f"set image_size"
            )
        found: Tensor = self.encoder(images)
        return found

    def _check_patches(self, name: str) -> None:
        """What a whole number of patches does not cover, timm would leave unread without a word."""
        patch = getattr(getattr(self.encoder, "patch_embed", None), "patch_size", None)
        patch = (patch, patch) if isinstance(patch, int) else patch
        if self.image_size and patch and any(side % p for side, p in zip(self.image_size, patch, strict=True)):
            raise ValueError(
                f"'{name}' cuts images into patches of {tuple(patch)} pixels: image_size {self.image_size} is no "
                f"whole number of them"
            )


def _head(width: int, embed_dim: int, use_mlp: bool) -> nn.Sequential:
    sides = (width, 2 * embed_dim, embed_dim) if use_mlp else (width, embed_dim)
    layers: list[nn.Module] = []
    for before, after in pairwise(sides):
        linear = nn.Linear(before, after)
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.GELU()]
    return nn.Sequential(*layers[:-1])


def _group_norm(width: int) -> nn.GroupNorm:
    """Up to 8 groups of at least 4 channels: over one channel at one place the norm would leave nothing."""
    return nn.GroupNorm(math.gcd(8, width // 4) if width % 4 == 0 else 1, width)


def _initialize_convolution(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
