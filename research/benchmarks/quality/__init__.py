"""What a picture's quality costs: `python -m research.benchmarks.quality --help`."""
