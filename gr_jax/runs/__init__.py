"""A run on disk and on screen: its folder, checkpoints, results and log."""
