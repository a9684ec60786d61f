"""Convolutions on the visible sites of a grid."""
