"""Export: the model of a run as files for elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from voxelwave import __version__
from voxelwave.contracts import Grid
from voxelwave.downstream.bundle import write_bundle
from voxelwave.downstream.bundle_metadata import BundleContent, Task
from voxelwave.downstream.embedding import fitted_size
from voxelwave.downstream.export import INPUT, Check, export_onnx, export_torch
from voxelwave.downstream.features import FeaturePyramid
from voxelwave.downstream.finetuned import WEIGHTS as MODEL_WEIGHTS
from voxelwave.downstream.finetuned import load_finetuned, save_finetuned
from voxelwave.downstream.load_backbone import load_backbone, save_backbone
from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console
from voxelwave.ops.files import locked

SUFFIXES = {"safetensors": "", "torch": ".pt2", "onnx": ".onnx", "bundle": ""}


class _Loaded(NamedTuple):
    model: nn.Module
    features: FeaturePyramid
    description: dict[str, Any]
    task: Task
    outputs: tuple[str, ...]
    """Of a pyramid its levels, of a fine-tuned model the names of its channels."""

    def save_weights(self, folder: Path) -> None:
        """Write weights and description into `folder`, for `load_backbone` or `load_finetuned`."""
        if self.task == "features":
            save_backbone(folder, self.features.backbone.state_dict(), self.description)
        else:
            save_finetuned(folder, self.model, self.description)


def export(
    weights: Path,
    out: Path,
    *,
    file_format: str,
    in_channels: int | None = None,
    img_size: str | None = None,
    console: Console | None = None,
) -> None:
    """Write the model of a run to `out`, as `safetensors`, `torch`, `onnx` or `bundle`.

    Args:
        weights: what `load_backbone` takes, or the folder of a fine-tuning run.
        out: a folder for safetensors and bundle, a file for torch (.pt2) and onnx (.onnx); it must not be there yet.
        in_channels: of the volumes; needed for torch and onnx where the model takes several counts.
        img_size: for torch and onnx, "96" or "96,96,64"; where not given the crop size of the training.

    Raises:
        InputError: for what cannot be read, does not fit, or would be overwritten.
    """
    console, out = console or Console(), out.expanduser()
    of_one_size = file_format in ("torch", "onnx")
    _check_place(out, file_format)
    if img_size is not None and not of_one_size:
        raise InputError("--img-size is for torch and onnx, whose volumes have one size; others take any")
    loaded = _load(weights.expanduser(), in_channels, whole=not of_one_size)
    if loaded.features.report is not None:
        console.say(str(loaded.features.report))
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out):
        _check_place(out, file_format)  # again: another process may have written it meanwhile
        if of_one_size:
            check = _write_program(loaded, out, file_format, in_channels, img_size)
            console.say(f"differs from PyTorch by at most {check.difference:.1e} (values up to {check.largest:.1e})")
        else:
            content = _bundle_content(loaded) if file_format == "bundle" else None
            with _whole_folder(out) as folder:
                if content is None:
                    loaded.save_weights(folder)
                else:
                    write_bundle(folder, content)
    console.say(f"wrote {out}")


def _check_place(out: Path, file_format: str) -> None:
    if file_format not in SUFFIXES:
        raise InputError(f"unknown format '{file_format}'; known: {', '.join(SUFFIXES)}")
    suffix = SUFFIXES[file_format]
    if suffix and out.suffix != suffix:
        raise InputError(f"{file_format} is written to a file that ends in {suffix}, got {out}")
    if not suffix and out.suffix in (".safetensors", ".pt2", ".onnx", ".json"):
        raise InputError(f"{file_format} is written to a folder, got {out}")
    if out.exists():
        raise InputError(f"{out} exists already: delete it, or choose another place")


def _load(path: Path, in_channels: int | None, *, whole: bool) -> _Loaded:
    if path.name == MODEL_WEIGHTS:
        return _load_finetuned(path.parent, in_channels, whole=whole)
    if any(next(path.glob(name), None) for name in (MODEL_WEIGHTS, f"fold_*/{MODEL_WEIGHTS}")):
        return _load_finetuned(path, in_channels, whole=whole)
    features = load_backbone(path, in_channels=in_channels)
    adapted = dict(features.report.adapted) if features.report else {}
    # A file says what is in it: which channel counts, and how those came about that were not trained.
    described = features.description | {
        "architecture": features.description["architecture"] | {"in_channels": list(features.in_channels)},
        "export": {"voxelwave": __version__, "adapted": adapted},
    }
    levels = tuple(f"features_{depth}" for depth in features.depths)
    return _Loaded(features.eval(), features, described, "features", levels)


def _load_finetuned(folder: Path, in_channels: int | None, *, whole: bool) -> _Loaded:
    model, description = load_finetuned(folder)
    features: Any = model.features
    takes = " or ".join(map(str, features.in_channels))
    if in_channels not in (None, *features.in_channels):
        raise InputError(f"the model in {folder} was fine-tuned for volumes of {takes} channels, not {in_channels}")
    if whole and in_channels is not None and len(features.in_channels) > 1:
        raise InputError(
            f"a fine-tuned model is exported with all its channel counts ({takes}): leave --in-channels out"
        )
    if (backbone := description.get("backbone")) and backbone.get("path"):
        # What goes elsewhere does not tell the folders of this machine.
        description["backbone"] = backbone | {"path": Path(backbone["path"]).name}
    task = description["task"]
    names = task["classes"] if task["name"] == "segmentation" else task["targets"]
    return _Loaded(model, features, description, task["name"], tuple(names))


def _write_program(
    loaded: _Loaded, out: Path, file_format: str, in_channels: int | None, img_size: str | None
) -> Check:
    counts = loaded.features.in_channels
    if in_channels is None and len(counts) > 1:
        raise InputError(
            f"{file_format} takes one channel count, and the model {len(counts)}: add --in-channels {counts[0]}"
        )
    size = _size(img_size, loaded)
    channels = in_channels or counts[0]
    outputs = loaded.outputs if loaded.task == "features" else ("logits",)
    described = loaded.description | {
        "program": {INPUT: ["batch", channels, *size], "outputs": list(outputs), "voxelwave": __version__}
    }
    if file_format == "torch":
        return export_torch(loaded.model, out, in_channels=channels, size=size, description=described)
    return export_onnx(loaded.model, out, in_channels=channels, size=size, outputs=outputs, description=described)


def _size(img_size: str | None, loaded: _Loaded) -> Grid:
    """Return the sides of the volumes, which the patch has to divide."""
    patch_size = loaded.features.strides[-1]
    given = img_size or loaded.description.get("preprocessing", {}).get("crop_size")
    if given is None:
        raise InputError(f"the description of the weights names no size: add --img-size, multiples of {patch_size}")
    try:
        sides = [int(side) for side in (given.split(",") if isinstance(given, str) else given)]
    except ValueError:
        sides = []
    if len(sides) == 1:
        sides *= 3
    if len(sides) != 3 or any(side < patch_size or side % patch_size for side in sides):
        raise InputError(
            f"--img-size is one side or three (96,96,64), multiples of the patch {patch_size}, got {given}"
        )
    return sides[0], sides[1], sides[2]


def _bundle_content(loaded: _Loaded) -> BundleContent:
    size = fitted_size(loaded.features) if loaded.task == "features" else _size(None, loaded)
    features = loaded.features
    return BundleContent(
        task=loaded.task,
        description=loaded.description,
        in_channels=features.in_channels,
        patch_size=features.strides[-1],
        size=size,
        outputs=loaded.outputs,
        out_channels=features.channels[-1] if loaded.task == "features" else len(loaded.outputs),
        version=__version__,
        save_weights=loaded.save_weights,
    )


@contextmanager
def _whole_folder(out: Path) -> Iterator[Path]:
    """Yield a new folder beside `out`, which takes that name once all of it is there."""
    part = out.with_name(f".part-{out.name}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
