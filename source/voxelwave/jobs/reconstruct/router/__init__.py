"""Tells the anatomy of a volume, so that its specialist can be taken."""
