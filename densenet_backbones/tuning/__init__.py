"""Sweeps: which values of a training's options pay, found by Optuna over many short trainings."""
