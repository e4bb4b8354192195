"""Shapes of labelling tools become objects: labelme's and CVAT's."""

import base64
import io
import json

import numpy as np
import pytest
from foreign_sets import labelme_json, write_cvat
from labelled_pictures import PICTURES, change_text, read_all, save_image, write_text
from PIL import Image

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.readers.detection_sources import read_detection
from densenet_backbones.data.readers.segmentation_sources import read_segmentation
from densenet_backbones.data.recognition.recognize import recognize


def test_shapes_of_labelme(tmp_path):
    """Circles become polygons, parts of one group one object; lines are left out."""
    picture = PICTURES[0]
    save_image(picture, tmp_path)
    content = json.loads(labelme_json(picture))
    part = {"label": "cat", "group_id": 7, "shape_type": "polygon"}
    content["shapes"] = [
        {**part, "points": [[1, 1], [9, 1], [9, 9]]},
        {**part, "points": [[20, 1], [29, 1], [29, 9]]},
        {"label": "ball", "shape_type": "circle", "points": [[20, 20], [20, 25]]},
        {"label": "cat", "shape_type": "line", "points": [[1, 1], [9, 9]]},
        {"label": "eye", "shape_type": "point", "points": [[3, 3]]},
    ]
    write_text(tmp_path / "photo 0.json", json.dumps(content))
    data = read_all(tmp_path)
    assert data.categories.names == ("ball", "cat")
    boxes = [[1, 1, 29, 9], [15, 15, 25, 25]]
    np.testing.assert_allclose(data.records[0].boxes, boxes, atol=1e-4)
    assert [str(problem).partition("photo 0.json: ")[2] for problem in data.problems] == [
        "shapes[3] ('cat'): a line of 2 points is no object; left out",
        "shapes[4] ('eye'): a point that shares its group_id with no one object; left out",
    ]
    with pytest.raises(DataError, match="strict reading found 2 faults"):
        read_all(tmp_path, strict=True)
    content["shapes"] = content["shapes"][3:4]
    write_text(tmp_path / "photo 0.json", json.dumps(content))
    with pytest.raises(
        DataError, match=r"no polygon \(such as .*: a line of 2 points is no object\)"
    ):
        read_all(tmp_path)


def make_mask(corner, mask, **entries):
    """Return labelme's shape of a mask; its corners are the box's first and last pixel."""
    file = io.BytesIO()
    Image.fromarray(np.uint8(mask) * 255).convert("1").save(file, "PNG")
    (x, y), (h, w) = corner, np.shape(mask)
    points = [[float(x), float(y)], [x + w - 1.0, y + h - 1.0]]
    text = base64.b64encode(file.getvalue()).decode()
    return {"label": "cat", "shape_type": "mask", "points": points, "mask": text, **entries}


def test_masks_of_labelme(tmp_path):
    """Their pixels are the objects', with holes; those of one group are one object."""
    picture = PICTURES[0]
    save_image(picture, tmp_path)
    content = json.loads(labelme_json(picture))
    ring = [[1, 1, 1], [1, 0, 1], [1, 1, 1], [0, 0, 0]]
    shapes = [make_mask((2, 4), ring), make_mask((9, 1), [[1]], group_id=3)]
    content["shapes"] = [*shapes, make_mask((10, 2), [[1]], group_id=3)]
    write_text(tmp_path / "photo 0.json", json.dumps(content))
    boxes = [[2, 4, 5, 7], [9, 1, 11, 3]]
    np.testing.assert_array_equal(read_all(tmp_path).records[0].boxes, boxes)
    (part,) = recognize(tmp_path, "segmentation").splits
    mask = read_segmentation([dict(part.source)]).records[0].read_mask()
    expected = np.zeros(picture.size[::-1], np.uint8)
    expected[4:8, 2:5] = ring
    expected[[1, 2], [9, 10]] = 1
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"mask": None}, "a mask needs its picture"),
        ({"mask": "?"}, "mask is no base64"),
        ({"mask": "iVBO"}, "mask: cannot be read as an image"),
        ({"points": [[2, 4], [9, 6]]}, "mask has 2x3 pixels, its box 8x3"),
        ({"points": [[2, 4], [3000, 6]]}, "its box is outside of the image"),
        ({"points": [[2, 4], [1, 6]]}, "its box is outside of the image"),
    ],
)
def test_faulty_masks_of_labelme_are_refused(change, match, tmp_path):
    save_image(PICTURES[0], tmp_path)
    content = json.loads(labelme_json(PICTURES[0]))
    content["shapes"] = [{**make_mask((2, 4), np.ones((3, 2))), **change}]
    write_text(tmp_path / "photo 0.json", json.dumps(content))
    with pytest.raises(DataError, match=rf"photo 0\.json: shapes\[0\]: {match}"):
        read_all(tmp_path)


CVAT_SHAPES = """
<box label="cat" xtl="2" ytl="2" xbr="12" ybr="8" rotation="90.0"/>
<mask label="dog" left="4" top="3" width="3" height="2" rle="1, 2, 1, 2"/>
<skeleton label="cat"><points label="nose" points="5,6" outside="0" occluded="1"/>
<points label="tail" points="9,9" outside="1"/><points label="ear" points="8,2"/></skeleton>
<polyline label="cat" points="1,1;2,2"/>
"""


def test_shapes_of_cvat(tmp_path):
    write_cvat(tmp_path)
    change_text(tmp_path / "annotations.xml", "<polygon", CVAT_SHAPES + "<polygon")
    data = read_detection(tmp_path, "train", keypoints=True)
    record = data.records[0]
    boxes = [[4, 0, 10, 10], [5, 3, 7, 5], [5, 2, 8, 6]]
    np.testing.assert_allclose(record.boxes[:3], boxes, atol=1e-5)
    assert data.categories.keypoints == ("ear", "nose", "tail")
    assert record.annotations[2]["keypoints"] == [8, 2, 2, 5, 6, 1, 0, 0, 0]
    masks = read_segmentation(tmp_path, "train").records[0].read_mask()
    assert masks[3:5, 4:7].tolist() == [[1, 2, 2], [1, 2, 2]]  # on the turned box
    assert "shape 4 (polyline): a polyline is no object; left out" in str(data.problems[0])
