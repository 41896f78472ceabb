"""Ways to put a face into a backbone: one file a method, each with `encode` and `bind`."""
