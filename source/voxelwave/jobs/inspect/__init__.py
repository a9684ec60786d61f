"""`voxelwave inspect`: what each file holds, and why it could not be used."""
