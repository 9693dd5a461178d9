"""The parts of benchmarks/harness.py: providers (one process each), their calls, the table."""
