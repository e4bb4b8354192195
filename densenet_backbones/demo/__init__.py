"""A page on this machine that shows what models find in pictures and videos: ``densenet demo``."""
