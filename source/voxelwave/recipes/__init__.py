"""One file a job: reads a config, builds the parts, runs them."""
