"""Create a job and publish its messages."""
