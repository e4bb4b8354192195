"""Stop, kill and resume a run: its locks, logs and checkpoint files, and what may change."""
