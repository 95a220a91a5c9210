"""Forests whose splits are learned across tasks."""
