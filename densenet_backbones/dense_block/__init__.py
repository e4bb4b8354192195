"""Executes one dense block from tensors and layers; imports nothing else of the project."""
