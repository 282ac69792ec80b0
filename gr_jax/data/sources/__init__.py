"""Data sets: where pictures and labels come from."""
