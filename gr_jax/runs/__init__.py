"""A run on disk and on screen: folder, checkpoints, results, log."""
