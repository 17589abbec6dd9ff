"""Thumbnails of uploaded pictures, with FastAPI."""
