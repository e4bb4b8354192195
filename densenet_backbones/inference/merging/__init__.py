"""Several views or tiles of an image, and how their results are merged into one."""
