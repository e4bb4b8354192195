"""Anatomy of a network: feature reuse, receptive fields, costs, priors against data."""
