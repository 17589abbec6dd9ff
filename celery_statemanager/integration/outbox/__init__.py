"""The messages of jobs: how they are made, stored and published."""
