"""Data, networks and weights of the book: everything whose truth is known, and what learns it."""
