"""Faults put in on purpose, to see which of them the tests catch."""
