"""`voxelwave finetune`: a pretrained backbone for segmentation or classification."""
