"""Damaged and hostile files against the loaders; ``python -m tests.fuzz --help`` runs a longer job."""
