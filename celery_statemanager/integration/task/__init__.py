"""Track one execution of one cell."""
