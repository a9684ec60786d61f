"""`voxelwave probe`: what frozen features tell of scans."""
