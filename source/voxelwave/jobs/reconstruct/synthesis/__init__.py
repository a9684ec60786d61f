"""K-space that is made for who has none."""
