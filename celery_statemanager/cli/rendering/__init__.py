"""Render job states: JSON lines, tables and the live display."""
