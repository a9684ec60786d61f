"""`voxelwave prepare`: any folder of scans into a data set for training."""
