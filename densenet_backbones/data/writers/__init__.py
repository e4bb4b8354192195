"""Writes sets as data sets in other layouts, one file a format."""
