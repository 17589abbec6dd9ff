"""Integrations with other frameworks. Only projects that use a framework import its part."""
