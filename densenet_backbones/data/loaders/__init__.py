"""Loaders of training and evaluation, and images that cannot be used: found before, and during."""
