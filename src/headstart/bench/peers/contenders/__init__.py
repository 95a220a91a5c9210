"""One file a contender: each computes the same meta-gradient in that library's own best way."""
