"""Writes the quick-start data set: drawn scenes with exact annotations.

The same images come in COCO's layout and in Pascal VOC's:

    ROOT/train/*.jpg  ROOT/val/*.jpg                            images
    ROOT/annotations/instances_{split}.json                     COCO boxes and masks
    ROOT/annotations/keypoints_{split}.json                     COCO keypoints of the figures
    ROOT/annotations/panoptic_{split}.json, panoptic_{split}/   COCO panoptic, things and stuff
    ROOT/VOC/{Annotations,ImageSets,JPEGImages,SegmentationClass}
    ROOT/VOC/labelmap.txt                                       names and colors of the masks
    ROOT/scenes.json                                            parameters, and whether complete

Image ``i`` of a split depends on (seed, split, i) and the size only: more images of the same seed
begin with the same images. The same parameters give the same bytes with the same versions of
NumPy and OpenCV.
"""
