"""Readers of the formats of other tools, each of which becomes COCO's structure."""
