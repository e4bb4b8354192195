"""Detection heads: boxes, priors, matching, losses, post-processing and the DSOD detectors."""

if not __name__.startswith("densenet_backbones."):
    raise ImportError("import densenet_backbones.heads, not heads: a second copy of every class")
