"""Volumes from files of any format, axes towards RAS."""
