"""Checks of a data set as a whole: what teaches nothing, or something that is wrong."""
