"""Comparison of runs: what differs in their options, what they reached, what they cost."""
