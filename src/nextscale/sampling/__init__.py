"""Sampling runs: many pictures, drawn by any number of processes into one folder, that survive being
stopped.
"""
