"""Whole detectors and segmenters as they are deployed, beside themselves exported."""

DEPLOYED_MODELS = {
    "dsod300": 300,
    "retinanet_densenet121_fpn": 512,
    "unet": 512,
    "fcdensenet56": 224,
}
"""Models that are timed whole -> side of their image in pixels."""
