"""Convolutions that live on the visible sites of a grid."""
