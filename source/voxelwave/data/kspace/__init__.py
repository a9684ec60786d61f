"""Complex multi-coil images: generated phantoms, and transforms of them."""
