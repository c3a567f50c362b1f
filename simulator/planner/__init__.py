"""Choosing: the finite domain of layouts and precisions, and the search over it."""
