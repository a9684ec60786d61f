"""`voxelwave synthesize`: generated heads as NIfTI files."""
