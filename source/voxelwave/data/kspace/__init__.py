"""Complex multi-coil images and k-space: generated phantoms and transforms of them, files, and slices of files."""
