"""What a run leaves behind, so that it can be stopped, killed and gone on with."""
