"""A chord, the same tasks as a tracked job, and the kill that shows the difference."""
