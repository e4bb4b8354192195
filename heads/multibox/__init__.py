"""Parts of SSD and DSOD: priors, matching, box coding, head, losses and selection."""
