"""A folder in the form of MONAI's bundles: weights, what they are, and an inference that runs.

Source: the MONAI Bundle Specification.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voxelwave.downstream.bundle_metadata import BundleContent, metadata, task_of, trained_on
from voxelwave.downstream.inference import OVERLAP

DOWNSTREAM = "voxelwave.downstream"

LOGGING = """[loggers]
keys=root

[handlers]
keys=console

[formatters]
keys=plain

[logger_root]
level=INFO
handlers=console

[handler_console]
class=StreamHandler
level=INFO
formatter=plain
args=(sys.stdout,)

[formatter_plain]
format=%(name)s: %(message)s
"""


def write_bundle(folder: Path, content: BundleContent) -> None:
    """Write the bundle into `folder`, which is there and empty."""
    for name in ("configs", "docs", "models"):
        (folder / name).mkdir()
    content.save_weights(folder / "models")
    for name, described in (("metadata", metadata(content)), ("inference", inference(content))):
        (folder / "configs" / f"{name}.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    (folder / "configs" / "logging.conf").write_text(LOGGING, encoding="utf-8")
    (folder / "docs" / "README.md").write_text(_readme(content), encoding="utf-8")
    (folder / "LICENSE").write_text(_license(content.description), encoding="utf-8")


def inference(content: BundleContent) -> dict[str, Any]:
    """Return the content of `configs/inference.json`; what it calls is this package, so that nothing is done twice."""
    models = "$@bundle_root + '/models'"
    if content.task == "features":
        network: dict[str, Any] = {
            "network_def": {"_target_": f"{DOWNSTREAM}.load_backbone.load_backbone", "path": models},
            "features": "@network_def",
        }
    else:
        network = {
            "loaded": {"_target_": f"{DOWNSTREAM}.finetuned.load_finetuned", "run_folder": models},
            "network_def": "$@loaded[0]",
            "features": "$@network_def.features",
        }
    size = None if content.size is None else list(content.size)
    calls: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "features": (
            {"_target_": f"{DOWNSTREAM}.embedding.embed_volume", "size": size},
            {"_target_": f"{DOWNSTREAM}.bundle_run.write_embedding"},
        ),
        "segmentation": (
            {
                "_target_": f"{DOWNSTREAM}.inference.predict_volume",
                "window": size,
                "overlap": OVERLAP,
                "num_classes": "$@network_def.num_classes",
            },
            {"_target_": f"{DOWNSTREAM}.bundle_run.write_segmentation"},
        ),
        "classification": (
            {"_target_": f"{DOWNSTREAM}.classification.predict_targets", "size": size},
            # Names of a file are read when it runs: MONAI evaluates what stands here and begins with $, @ or %.
            {"_target_": f"{DOWNSTREAM}.bundle_run.write_probabilities", "targets": "$@loaded[1]['task']['targets']"},
        ),
    }
    inferer, postprocessing = calls[content.task]
    return {
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/predictions'",
        # Of several each scan is told as `voxelwave predict` does it.
        "modality": "" if len(content.modalities()) > 1 else content.modalities()[0],
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        **network,
        "network": "$@network_def.to(@device).eval()",
        "preprocessing": {"_target_": f"{DOWNSTREAM}.scan_reader.ScanReader", "features": "@features"},
        "dataset": {
            "_target_": f"{DOWNSTREAM}.bundle_run.Scans",
            "folder": "@dataset_dir",
            "transform": "@preprocessing",
            "modality": "@modality",
        },
        # A function with its settings, to be called with the model and a volume.
        "inferer": {"_mode_": "callable", **inferer},
        "postprocessing": {"_mode_": "callable", **postprocessing},
        "evaluator": {
            "_target_": f"{DOWNSTREAM}.bundle_run.Evaluator",
            "network": "@network",
            "dataset": "@dataset",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "output_dir": "@output_dir",
        },
        "run": ["$@evaluator.run()"],
    }


def _license(description: Mapping[str, Any]) -> str:
    name, backbone = description.get("license"), description.get("backbone", {}).get("license")
    said = (
        f"The weights in models/ are licensed under {name}."
        if name
        else "No licence is stated for the weights in models/: ask who trained them before you use or pass them on."
    )
    return said + (
        f"\nThe backbone that they were fine-tuned from is licensed under {backbone}.\n" if backbone else "\n"
    )


def _readme(content: BundleContent) -> str:
    modalities = content.modalities()
    weights = "backbone" if content.task == "features" else "model"
    results = {
        "features": "`<name>.npz`, in it the vector `embedding`: the mean of the features over the tissue",
        "segmentation": "`<name>_seg.nii.gz`: labels in the grid of the scan's own file",
        "classification": "`<name>.json`: the probability of each target",
    }[content.task]
    told = "Which of them a scan is, header, name, folder or values tell; `--modality` says it of all.\n"
    other = f"\n{told}" if len(modalities) > 1 else ""
    task = task_of(content)
    return f"""# {task[0].upper()}{task[1:]}

{trained_on(content.description)}.

Architecture, preprocessing and what it was trained on are in `models/{weights}.json`, inputs and outputs of the network
in `configs/metadata.json`. Scans are prepared by the code that prepared those of the training.

## Run it

Needs voxelwave {content.version}, and for MONAI's command line the package `fire`.

    python -m monai.bundle run --config_file configs/inference.json --bundle_root . \\
        --dataset_dir IMAGES --output_dir OUT

`IMAGES` is a folder of {" and ".join(modalities)} scans (NIfTI or MGH). What is written to `OUT` for each of them:
{results}.
{other}
Not for diagnosis or treatment.
"""
