"""A pretrained backbone from the files that a run leaves, with a report of every key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from voxelwave.downstream.description import checked, describe_run
from voxelwave.downstream.features import FeaturePyramid, LoadReport
from voxelwave.downstream.weights import read_weights, save_weights
from voxelwave.engine.checkpoint import BEST, LAST, load_checkpoint
from voxelwave.errors import InputError
from voxelwave.ops.loggers import logger
from voxelwave.registry import BACKBONES, MODALITIES

WEIGHTS, DESCRIPTION = "backbone.safetensors", "backbone.json"
IN_A_RUN = (WEIGHTS, BEST, LAST)
# What DDP, torch.compile and FSDP put before the names of a module that they wrap.
WRAPPERS = ("module.", "_orig_mod.", "_forward_module.", "_fsdp_wrapped_module.")
PART = "backbone."

Stem = Literal["repeat", "new"]
NEW_STEM = "new, random"  # how a stem came about, in reports


class _Found(NamedTuple):
    path: Path
    weights: dict[str, Tensor]
    description: dict[str, Any]


def save_backbone(folder: Path, weights: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write `backbone.safetensors` and, beside it, `backbone.json`: architecture, preprocessing, data, checksum."""
    save_weights(folder / WEIGHTS, weights, folder / DESCRIPTION, description)


def load_backbone(
    path: str | Path,
    *,
    in_channels: int | None = None,
    stem: Stem = "repeat",
    depths: Sequence[int] | None = None,
    strict: bool = True,
) -> FeaturePyramid:
    """Return the backbone of a run folder, of its `backbone.safetensors`, or of a training checkpoint.

    What became of every key is in `.report`, and logged in one line.

    Args:
        path: of a run folder `backbone.safetensors` is read, or where the run has never come to its end
            `best_model.pth`. One that was then given more steps writes both anew: at its end, and by its best epoch.
        in_channels: of the volumes that it will see; None keeps all patch embeddings that were trained. A count that
            was not trained gets a stem of its own.
        stem: for a count that was not trained: the 1-channel stem repeated and divided by the count ("repeat", so that
            a volume repeated as often gives the same features), or a random one ("new").
        depths: of the levels that are returned, blocks above them are left out; None takes up to four, evenly.
        strict: whether a key that is missing or unexpected is an error, or only reported.

    Raises:
        InputError: for a file that is missing, damaged, refused or no backbone's, and where nothing could be loaded.
    """
    found = _read(Path(path).expanduser())
    name, counts, settings = _architecture(found)
    trained = _trained_counts(found, counts)
    asked = trained if in_channels is None else (in_channels,)
    if not all(isinstance(count, int) and count > 0 for count in asked) or stem not in ("repeat", "new"):
        raise InputError(f"in_channels is at least 1 and stem 'repeat' or 'new', got {in_channels} and '{stem}'")
    backbone: Any = BACKBONES.build(name, asked, **settings)
    weights, left_out = _own_weights(found)
    if broken := next((key for key, value in weights.items() if not value.isfinite().all()), None):
        raise InputError(f"{found.path}: weight {broken} holds values that are not finite; take another checkpoint")
    report = _fill(backbone, weights, LoadReport(str(found.path), left_out=left_out), trained, stem)
    problems = [*(f"{key} is missing" for key in report.missing), *report.unexpected]
    if not report.loaded or (strict and problems):
        what = problems[0] if problems else "none of its keys is the backbone's"
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InputError(
            f"{found.path} does not fit the backbone '{name}' that its {DESCRIPTION} or configuration describes: "
            f"{what}{more}; it is damaged, or of another architecture"
        )
    if stem == "repeat" and NEW_STEM in report.adapted.values():
        raise InputError(
            f"{found.path} was trained on volumes of {_listed(trained)} channels, and has no patch embedding for "
            f"{_listed(asked)} to take or to repeat: stem 'new' (backbone.stem) begins with a random one"
        )
    pyramid = FeaturePyramid(backbone, depths=depths, report=report, description=found.description)
    kept = pyramid.backbone.state_dict().keys()
    cut = [key for key in report.loaded if key not in kept]
    report.left_out.update(dict.fromkeys(cut, f"above depth {pyramid.depths[-1]}, the last that was asked for"))
    report.loaded[:] = [key for key in report.loaded if key in kept]
    logger.info("%s", report)
    return pyramid


def _listed(counts: Sequence[int]) -> str:
    return " and ".join(map(str, counts))


def _read(path: Path) -> _Found:
    if path.is_dir():
        inside = next((path / name for name in IN_A_RUN if (path / name).is_file()), None)
        if inside is None:
            raise InputError(f"no backbone in {path}: a run folder holds one of {', '.join(IN_A_RUN)}")
        path = inside
    if path.suffix == ".safetensors":
        return _Found(path, *read_weights(path, path.with_name(DESCRIPTION)))
    checkpoint = load_checkpoint(path)
    try:
        volumes = {name: int(said.partition(":")[0]) for name, said in checkpoint["files"].items()}
        description = describe_run(
            checkpoint["config"],
            volumes=volumes,
            cropped=checkpoint.get("cropped"),  # older ones do not say it
            step=checkpoint["step"],
            version=checkpoint["voxelwave"],
        )
        weights = dict(checkpoint["model"])
        if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in weights.items()):
            raise TypeError("model")
        return _Found(path, weights, checked(description, path))
    except InputError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if "task" in checkpoint.get("config", {}):
            raise InputError(
                f"{path} is of a fine-tuned model, and the checkpoint of a pretraining run is wanted"
            ) from None
        raise InputError(f"{path} is not the checkpoint of a pretraining run: {error!r} is not in it") from None


def _architecture(found: _Found) -> tuple[str, tuple[int, ...], dict[str, Any]]:
    architecture = found.description["architecture"]
    return architecture["name"], tuple(architecture["in_channels"]), dict(architecture["settings"])


def _trained_counts(found: _Found, counts: tuple[int, ...]) -> tuple[int, ...]:
    """Return the channel counts that the run had volumes of; every run has a patch embedding for each modality."""
    volumes = found.description.get("data", {}).get("volumes", {})
    seen = {MODALITIES.get(name).channels for name, number in volumes.items() if number}
    return tuple(count for count in counts if count in seen) or counts


def _own_weights(found: _Found) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the backbone's weights by its own names, and the keys of other parts."""
    weights = {_unwrapped(key): value for key, value in found.weights.items()}
    if not any(key.startswith(PART) for key in weights):
        return weights, {}
    own = {key.removeprefix(PART): value for key, value in weights.items() if key.startswith(PART)}
    return own, {key: "serves pretraining only" for key in weights if not key.startswith(PART)}


def _unwrapped(key: str) -> str:
    while wrapper := next((prefix for prefix in WRAPPERS if key.startswith(prefix)), None):
        key = key.removeprefix(wrapper)
    return key


def _fill(
    backbone: nn.Module, weights: dict[str, Tensor], report: LoadReport, trained: tuple[int, ...], stem: Stem
) -> LoadReport:
    """Copy `weights` into `backbone` in place, and say what became of every key."""
    own = backbone.state_dict()
    # 1. Stems of channel counts that the run had no volumes of are as random as new ones.
    stems = {key for key in weights if key.startswith("stems.")}
    of_trained = tuple(f"stems.{count}." for count in trained)
    usable = {key: value for key, value in weights.items() if key not in stems or key.startswith(of_trained)}
    for key in own.keys() - usable.keys():
        if key.startswith("stems."):
            adapted, how = _adapted(key, usable, stem)
            report.adapted[key] = how
            if adapted is not None:
                usable[key] = adapted
    # 2. Whatever fits by name and shape.
    for key, value in own.items():
        if key in usable and usable[key].shape == value.shape:
            value.copy_(usable[key])
            if key not in report.adapted:
                report.loaded.append(key)
        elif key in usable or key not in report.adapted:
            report.adapted.pop(key, None)
            report.missing.append(key)
    # 3. The rest of the file.
    for key, value in weights.items():
        if key in own and key not in report.missing:
            continue
        if key in own:
            report.unexpected.append(f"{key} is {list(value.shape)} and not {list(own[key].shape)}")
        elif key in stems:
            report.left_out[key] = "of another channel count"
        else:
            report.unexpected.append(f"{key} is unexpected")
    return report


def _adapted(key: str, weights: Mapping[str, Tensor], stem: Stem) -> tuple[Tensor | None, str]:
    """Return a stem for a channel count that was not trained, and how it came about."""
    _, count, kind = key.split(".", 2)
    source = f"stems.1.{kind}"
    if stem == "new" or source not in weights:
        return None, NEW_STEM
    if weights[source].ndim < 2:  # a bias
        return weights[source], f"{source} as it is"
    repeated = weights[source].repeat(1, int(count), *[1] * (weights[source].ndim - 2)) / int(count)
    return repeated, f"{source} repeated {count} times and divided by {count}"
