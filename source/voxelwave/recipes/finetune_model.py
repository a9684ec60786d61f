"""`load_finetuned` under the name that it has in bundles of voxelwave 0.1.0."""

from voxelwave.downstream.finetuned import load_finetuned

__all__ = ["load_finetuned"]
