"""A data set of drawn scenes for first trainings and tests, in COCO and VOC layout."""
