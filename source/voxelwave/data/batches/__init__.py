"""From volumes to the batches of a training step."""
