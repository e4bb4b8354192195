"""Data sets on disk to batches: samples and sets, images, loading, and the data modules."""
