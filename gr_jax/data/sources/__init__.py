"""Data sets: sources of pictures and labels."""
