"""Where runs stand, read from their files without JAX and without a lock."""
