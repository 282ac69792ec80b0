"""A finished task's network in use: predictions for pictures, a file to deploy, the numbers of the run."""
