"""`voxelwave pretrain`: one model on MRI and CT, without labels."""
