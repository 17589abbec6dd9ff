"""Creating a job and publishing its messages."""
