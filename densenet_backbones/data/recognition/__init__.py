"""Recognizes the data that lies in a folder, a file or an archive, by looking at it."""
