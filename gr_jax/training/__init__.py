"""The train step, the compiled programs, and the experiment that a config describes."""
