"""What the command line does: one folder a job, with the same file names in each."""
