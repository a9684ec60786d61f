"""Scores of reconstructions, their page and pictures."""
