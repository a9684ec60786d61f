"""`voxelwave subsample`: reconstruction from a fixed or learned choice of single frequencies, with its controls."""
