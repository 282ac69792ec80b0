"""Lists of runs: sweeps of settings, and comparisons of methods."""
