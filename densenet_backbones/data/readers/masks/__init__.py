"""Readers of folders of images and folders of masks."""
