"""`voxelwave doctor`: whether voxelwave can train on this machine."""
