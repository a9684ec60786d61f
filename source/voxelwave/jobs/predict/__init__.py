"""`voxelwave predict`: a fine-tuned model on other images."""
