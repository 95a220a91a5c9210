"""Other libraries beside headstart: an environment for them, a process for each, and what each of them computes."""
