"""Readers of other tools' formats: YOLO, labelme, CVAT, tables; each becomes COCO's structure."""
