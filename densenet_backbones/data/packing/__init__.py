"""Records of large data sets as columns of numbers, which worker processes share."""
