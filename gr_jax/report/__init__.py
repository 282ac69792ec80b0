"""A page of pictures and tables of runs, from their files: python -m gr_jax.report RUN... --out=report.html."""
