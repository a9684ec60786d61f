"""ISMRMRD files: acquisitions line by line."""
