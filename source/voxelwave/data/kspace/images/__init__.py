"""Images that were reconstructed: where they lie, and their files."""
