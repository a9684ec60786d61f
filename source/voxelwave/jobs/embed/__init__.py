"""`voxelwave embed`: a vector for every scan."""
