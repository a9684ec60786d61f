"""The command `voxelwave export`."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    weights: Annotated[Path, typer.Argument(help="A run's folder, its backbone.safetensors, or a checkpoint.")],
    out: Annotated[Path, typer.Argument(help="A new folder; for torch a .pt2 file, for onnx an .onnx file.")],
    file_format: Annotated[str, typer.Option("--format", help="safetensors, torch, onnx or bundle.")],
    in_channels: Annotated[int | None, typer.Option(help="Of the volumes; adapts a backbone to another count.")] = None,
    img_size: Annotated[str | None, typer.Option(help="For torch and onnx: 96 or 96,96,64.")] = None,
) -> None:
    """Write a pretrained backbone or a fine-tuned model as files for elsewhere.

    Programs of torch and onnx are compared with PyTorch before they are written.
    """
    from voxelwave.jobs.export.run import export as run

    run(weights, out, file_format=file_format, in_channels=in_channels, img_size=img_size)
