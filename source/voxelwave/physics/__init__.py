"""Generated anatomy and the physics of acquisition."""
