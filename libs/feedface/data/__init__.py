"""Training data: the record schema, what is drawn for a sample, pictures and cached features as batches."""
