"""Tracking one execution of a task."""
