"""Commit rules, one a file."""
