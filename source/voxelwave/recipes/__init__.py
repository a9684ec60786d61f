"""Names that exported bundles of voxelwave 0.1.0 call; nothing else lives here."""
