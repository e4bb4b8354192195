"""Report on labelled images and on a finished evaluation of a classifier."""
