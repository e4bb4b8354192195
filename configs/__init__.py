"""Experiment files that ship with the package, one YAML an experiment."""
