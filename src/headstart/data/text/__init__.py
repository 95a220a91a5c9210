"""Texts: sentences and short passages, each of a class."""
