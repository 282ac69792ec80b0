"""The train step, its programs and what a config stands for."""
