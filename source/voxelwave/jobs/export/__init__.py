"""`voxelwave export`: the model of a run as files for elsewhere."""
