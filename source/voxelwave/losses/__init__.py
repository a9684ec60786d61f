"""Losses; the contrastive ones by name."""
