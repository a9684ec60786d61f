"""What names, headers and values tell of a file: its modality, whose scan it is, whether it is a label map."""
