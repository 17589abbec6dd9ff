"""Migrations of the app, which create the tables of the store."""
