"""About the product, not part of it: the paper's claims again, other ways to personalise, benchmarks."""
