"""Choices for data of one's own: the recipe, the weights at hand, the images a step."""
