"""Trainings of each kind of model: a Lightning module each, over one base."""
