"""Talk of a run: its lines and progress bar, its early end, its summary, the next commands."""
