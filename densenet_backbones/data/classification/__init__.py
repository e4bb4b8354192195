"""Labelled images: folders, tables, CIFAR's files and crops of objects, as samples of one class.

A labelled image is a `DetectionSet`'s record with one object, which fills the image. So splits,
renamed and dropped classes, checks and packing are those of detection data; a sample's label counts
from 1 as theirs does, and a classifier's from 0.
"""
