"""Training tasks, metrics, pictures and the command line (needs the `train` extra)."""
