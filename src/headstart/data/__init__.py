"""Kinds of data, and the built-in families of tasks; `headstart.tasks` has their names."""
