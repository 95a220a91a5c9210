"""Heads on an embedding, solved to the optimum for each task."""
