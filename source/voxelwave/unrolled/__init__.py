"""From undersampled k-space of several coils to an image: unrolled networks, and what they are compared with.

Each of them is a `Reconstruction` of `contracts.py`. Beside them stand the layers that undersample: fixed and learned.
"""
