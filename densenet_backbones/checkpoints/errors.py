"""Error raised wherever weights are read or fitted."""

__all__ = ["CheckpointError"]


class CheckpointError(ValueError):
    """A checkpoint file is missing, unreadable, unsafe or not what was asked for."""
