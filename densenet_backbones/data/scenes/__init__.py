"""Data set of drawn scenes for first trainings and tests, in COCO's and VOC's layouts."""
