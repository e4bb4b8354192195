"""Masks of pictures: their codes, run lengths, and the pixels of each class."""
