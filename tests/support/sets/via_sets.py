"""Writes pictures as the VGG Image Annotator (VIA) does: projects and exports of each version."""

import json

from labelled_pictures import CLASSES, PICTURES, of_split, save_image, write_text


def regions(picture, rectangles=False):
    """Regions of VIA 2: outlines or rectangles, whose class is an attribute of several."""
    for thing in picture.things:
        shape = {"name": "polygon"}
        shape |= {f"all_points_{axis}": list(thing.outline[n::2]) for n, axis in enumerate("xy")}
        if rectangles:
            x1, y1, x2, y2 = thing.box
            shape = {"name": "rect", "x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}
        attributes = {"class": thing.name, "color": "red"}
        yield {"shape_attributes": shape, "region_attributes": attributes}


def metadata(pictures, version=2):
    entries = {}
    for picture in pictures:
        own = list(regions(picture))
        entry = {"filename": picture.name, "size": 999, "file_attributes": {}}
        entry["regions"] = own if version == 2 else {str(n): r for n, r in enumerate(own)}
        entries[f"{picture.name}999"] = entry
    return entries


def write_via_project(root):
    """A project of version 2, whose pictures lie beside it."""
    for picture in PICTURES:
        save_image(picture, root)
    project = {
        "_via_settings": {"ui": {}, "core": {"filepath": {}}, "project": {"name": "pets"}},
        "_via_img_metadata": metadata(PICTURES),
        "_via_attributes": {"region": {"class": {"type": "text"}}, "file": {}},
        "_via_data_format_version": "2.0.10",
    }
    write_text(root / "pets.json", json.dumps(project))


def write_via_export(root):
    """Exports of version 1 in the folders of the splits, as Matterport's balloons have them."""
    for split in ("train", "val"):
        for picture in of_split(split):
            save_image(picture, root / split)
        content = json.dumps(metadata(of_split(split), 1))
        write_text(root / split / "via_region_data.json", content)


def quote(cell):
    return '"{}"'.format(str(cell).replace('"', '""'))


def write_via_csv(root):
    """A table of version 2, of rectangles."""
    head = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes"
    rows = [f"{head},region_attributes"]
    for picture in PICTURES:
        save_image(picture, root / "images")
        own = list(regions(picture, rectangles=True))
        for n, region in enumerate(own):
            cells = [
                quote(json.dumps(region[k])) for k in ("shape_attributes", "region_attributes")
            ]
            rows.append(",".join([picture.name, "999", quote("{}"), str(len(own)), str(n), *cells]))
    write_text(root / "via_export_csv.csv", "\n".join(rows) + "\n")


COLUMNS = "temporal_coordinates,spatial_coordinates,metadata"
ATTRIBUTES = {
    "1": {"aname": "class", "type": 4, "options": {str(n): name for n, name in enumerate(CLASSES)}}
}


def shapes(rectangles=False):
    """Number of the picture, shape and class of each object, as version 3 has them."""
    for n, picture in enumerate(PICTURES, start=1):
        for thing in picture.things:
            x1, y1, x2, y2 = thing.box
            numbers = [2, x1, y1, x2 - x1, y2 - y1] if rectangles else [7, *thing.outline]
            yield n, numbers, {"1": str(CLASSES.index(thing.name))}


def write_via_3_project(root):
    for picture in PICTURES:
        save_image(picture, root / "images")
    numbered = [(str(n), picture) for n, picture in enumerate(PICTURES, start=1)]
    project = {
        "project": {"pid": "__VIA_PROJECT_ID__", "vid_list": [n for n, _ in numbered]},
        "config": {"file": {"loc_prefix": {"1": ""}}},
        "attribute": ATTRIBUTES,
        "file": {
            n: {"fid": n, "fname": p.name, "type": 2, "loc": 1, "src": p.name} for n, p in numbered
        },
        "metadata": {
            f"{n}_{k}": {"vid": str(n), "flg": 0, "z": [], "xy": xy, "av": av}
            for k, (n, xy, av) in enumerate(shapes())
        },
        "view": {n: {"fid_list": [n]} for n, _ in numbered},
    }
    write_text(root / "via_project_28Nov.json", json.dumps(project))


def write_via_3_csv(root):
    for picture in PICTURES:
        save_image(picture, root)
    rows = [
        "# Exported using VGG Image Annotator (http://www.robots.ox.ac.uk/~vgg/software/via)",
        f"# ATTRIBUTE = {json.dumps(ATTRIBUTES)}",
        f"# CSV_HEADER = metadata_id,file_list,flags,{COLUMNS}",
    ]
    for k, (n, numbers, values) in enumerate(shapes(rectangles=True)):
        cells = [json.dumps([PICTURES[n - 1].name]), 0, "[]", json.dumps(numbers)]
        rows.append(",".join(map(quote, [f"{n}_{k}", *cells, json.dumps(values)])))
    write_text(root / "via_project_28Nov.csv", "\n".join(rows) + "\n")
