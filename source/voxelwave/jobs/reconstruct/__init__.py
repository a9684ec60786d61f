"""Reconstruction of undersampled k-space: training, running and scoring."""
