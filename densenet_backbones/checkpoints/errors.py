"""The error of everything that reads or fits weights."""

__all__ = ["CheckpointError"]


class CheckpointError(ValueError):
    """A checkpoint file is missing, unreadable, unsafe or not what was asked for."""
