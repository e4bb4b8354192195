"""Readers of annotation formats, a room a family; and the choice among them."""
