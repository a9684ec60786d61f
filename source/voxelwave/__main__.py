"""`python -m voxelwave` is the command `voxelwave`."""

from voxelwave.cli import main

main()
