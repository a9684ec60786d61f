"""What several jobs stand on: configurations, run folders, the training session, the console."""
