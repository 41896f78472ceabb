"""What a training step costs: `python -m research.benchmarks.training --help`."""
