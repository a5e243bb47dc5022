"""Sampling runs: many pictures in a folder, by any number of processes, however often they are stopped."""
