"""Class-incremental methods in NumPy, float64: golden values for the tests of `gr_jax.methods`.

Written from the methods' equations alone. Nothing here imports JAX or `gr_jax`, so a test that compares the two
compares two derivations. `notation` holds what several methods share, `differences` the central differences; every
other file is one method. "Section n" in a docstring is section n of the page that restates the methods' algorithms.

Conventions. logits [batch, classes] come from a head of fixed width; labels [batch] are class indices; the masks
`old` and `new` [classes] bool are disjoint, and a class in neither is unseen. Whatever stands in the columns that a
function does not use, NaN and inf included, changes nothing, and the gradient there is exactly 0. Losses are means over
the batch. In the first task `old` is all False, and nothing is distilled.
"""
