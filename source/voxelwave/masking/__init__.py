"""Masking schemes by name."""
