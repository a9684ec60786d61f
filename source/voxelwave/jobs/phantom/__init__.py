"""`voxelwave phantom`: contrastive embeddings of 2D multi-coil MRI phantoms."""
