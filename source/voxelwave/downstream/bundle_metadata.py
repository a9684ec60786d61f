"""What a bundle says of itself: the content of its metadata.json.

Source: MONAI's schema of metadata.json, 2024-07-25.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from voxelwave.contracts import Grid
from voxelwave.downstream.description import modality_settings
from voxelwave.errors import InputError
from voxelwave.registry import MODALITIES

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
BUNDLE_VERSION = "0.1.0"
MONAI_MODALITIES = {"mri": "MR", "ct": "CT"}
REQUIRED = ("nibabel", "safetensors")
NOT_STATED = "not stated"
EVALUATED = str.maketrans("$@%", "＄＠％")

Task = Literal["features", "segmentation", "classification"]


@dataclass(frozen=True)
class BundleContent:
    """What goes into a bundle.

    Attributes:
        task: "features" of a backbone, or that of a fine-tuned model.
        description: as in `backbone.json` or `model.json`.
        in_channels: the channel counts that the model takes.
        patch_size: sides of volumes are multiples of it.
        size: of a window, or what a whole scan is shown at; for features None takes scans as they are.
        outputs: the names of a fine-tuned model's channels, or of a pyramid's levels.
        out_channels: of each output.
        version: of the package that exports it.
        save_weights: writes weights and description into a folder.
    """

    task: Task
    description: Mapping[str, Any]
    in_channels: tuple[int, ...]
    patch_size: int
    size: Grid | None
    outputs: Sequence[str]
    out_channels: int
    version: str
    save_weights: Callable[[Path], None]

    def modalities(self) -> list[str]:
        """Return the modalities whose scans the model can be shown; raises InputError where there is none."""
        known = list(modality_settings(self.description)) or MODALITIES.names()
        fitting = [name for name in known if MODALITIES.get(name).channels in self.in_channels]
        if not fitting:
            counts = ", ".join(f"{name} has {MODALITIES.get(name).channels}" for name in known)
            took = " or ".join(map(str, self.in_channels))
            raise InputError(f"a bundle reads scans, and the model takes {took} channels: {counts}")
        return fitting


def metadata(content: BundleContent) -> dict[str, Any]:
    """Return the content of `configs/metadata.json`, with what MONAI would evaluate written in other signs."""
    first, *others = content.modalities()
    described = {
        "schema": SCHEMA,
        "version": BUNDLE_VERSION,
        "changelog": {BUNDLE_VERSION: f"exported by voxelwave {content.version}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "python_version": platform.python_version(),
        "required_packages_version": {"voxelwave": content.version} | {name: version(name) for name in REQUIRED},
        "task": task_of(content),
        "description": trained_on(content.description),
        "authors": NOT_STATED,
        "copyright": NOT_STATED,
        "license": content.description.get("license"),
        "data_type": "nibabel",
        "intended_use": "research; not for diagnosis or treatment",
        "network_data_format": _data_format(content, first),
        **{f"{name}_data_format": _data_format(content, name) for name in others},
    }
    return dict(_inert(described))


def _inert(value: Any) -> Any:
    """Return a value with $, @ and % in full width: MONAI joins the metadata to the configuration that it evaluates."""
    if isinstance(value, Mapping):
        return {key: _inert(of) for key, of in value.items()}
    if isinstance(value, list):
        return [_inert(of) for of in value]
    return value.translate(EVALUATED) if isinstance(value, str) else value


def _data_format(content: BundleContent, modality: str) -> dict[str, Any]:
    sides = [f"{content.patch_size}*{letter}" for letter in "nmk"]
    channels = MODALITIES.get(modality).channels
    settings = modality_settings(content.description).get(modality, {})
    windows = settings.get("windows_hu") or [None] * channels
    image = _tensor("image", "magnitude", channels, sides) | {
        "modality": MONAI_MODALITIES.get(modality, modality),
        "value_range": [0, 1],
        "channel_def": {
            str(index): f"window at {window[0]}, {window[1]} wide, in HU" if window else "image"
            for index, window in enumerate(windows)
        },
    }
    names = {str(index): name for index, name in enumerate(content.outputs)}
    if content.task == "segmentation":
        outputs = {"pred": _tensor("image", "labels", content.out_channels, sides) | {"channel_def": names}}
    elif content.task == "classification":
        outputs = {"pred": _tensor("logits", "classes", content.out_channels, []) | {"channel_def": names}}
    else:
        # The levels of a pyramid, in order; the last is the model's own output.
        keys = [*content.outputs[:-1], "pred"]
        outputs = {key: _tensor("image", "latent", content.out_channels, ["n", "m", "k"]) for key in keys}
    return {"inputs": {"image": image}, "outputs": outputs}


def _tensor(kind: str, form: str, channels: int, shape: Sequence[str]) -> dict[str, Any]:
    return {
        "type": kind,
        "format": form,
        "num_channels": channels,
        "spatial_shape": list(shape),
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
        "channel_def": {},
    }


def task_of(content: BundleContent) -> str:
    """Return what the model does, in a line."""
    if content.task == "features":
        return "features of 3D brain scans, for other tasks"
    what = {"segmentation": "segmentation of 3D brain scans: ", "classification": "classification of 3D brain scans: "}
    return what[content.task] + ", ".join(content.outputs)


def trained_on(description: Mapping[str, Any]) -> str:
    """Return what the model is and what it saw, as far as its description tells."""
    said = [f"A model with the backbone '{description['architecture']['name']}'"]
    # What is fine-tuned keeps what is known of its backbone.
    pretraining = description.get("backbone", description).get("data", {})
    if volumes := " and ".join(f"{count} {name}" for name, count in pretraining.get("volumes", {}).items() if count):
        said.append(f"pretrained on {volumes} volumes in {pretraining.get('steps')} steps")
    if cases := ", ".join(f"{count} {part}" for part, count in description.get("data", {}).get("cases", {}).items()):
        said.append(f"fine-tuned with cases: {cases}")
    return ", ".join(said)
