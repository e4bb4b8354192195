"""Reading of files that nobody vouches for: the bounds of all inputs, and text within them."""
