"""`voxelwave compare-logs`: whether two runs recorded the same numbers."""
