"""What a picture costs: `python -m research.benchmarks.sampling --help`."""
