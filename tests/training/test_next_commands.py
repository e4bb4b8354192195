"""What a finished training advises to do next."""

from foreign_sets import write_layout

from densenet_backbones.data.detection import DetectionData
from densenet_backbones.training.report import has_test_split


def test_test_images_are_advised_only_where_they_had_no_part_in_the_training(tmp_path):
    whole = write_layout("labelimg", tmp_path / "whole")
    assert not has_test_split(DetectionData(root=str(whole)))  # its held-out part is no test set
    root = write_layout("voc", tmp_path / "voc")
    assert not has_test_split(DetectionData(root=str(root)))
    (trained,) = root.rglob("train.txt")
    first, *others = trained.read_text().splitlines()
    trained.write_text("\n".join(others))
    trained.with_name("test.txt").write_text(first)
    assert has_test_split(DetectionData(root=str(root)))
