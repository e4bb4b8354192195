"""Options of the engine: which there are, and how those of the model are merged."""
