"""Training: the command line, tasks, optimization, callbacks and the run folder."""
