"""Looks at a data set: counts, sizes, faults, duplicates and pictures; converts and cleans it."""
