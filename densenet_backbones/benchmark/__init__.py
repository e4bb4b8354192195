"""Measurements beside peer libraries: inference, memory, input pipeline, start."""
