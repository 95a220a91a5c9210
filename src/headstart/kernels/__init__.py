"""Records of tensor operations as functions in C, for processors: what a step of a small network takes, at once."""
