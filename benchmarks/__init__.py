"""What headstart is measured by, beside others: ``python -m benchmarks --help``. Not a part of the package."""
