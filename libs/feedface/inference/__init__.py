"""From jobs to pictures on disk: batches, compiling, int8, offloading, outputs."""
