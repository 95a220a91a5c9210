"""Where episodes come from: every factory returns a `headstart.types.Tasks`."""
