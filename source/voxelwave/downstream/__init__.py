"""Checkpoints in other people's tasks."""
