"""What tiles change in a segmenter's results, as the command tells it."""

import re

import pytest

from densenet_backbones.inference.merging.tile_comparison import main

ROW = re.compile(r"^ +(\d+) or more +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)$", re.MULTILINE)


def test_tiles_beside_whole_images(tiny_segmentation, tiny_masks, capsys):
    weights, images = tiny_segmentation / "model.safetensors", tiny_masks / "JPEGImages"
    main([str(weights), str(images), "--tile", "32", "--overlap", "0", "--limit", "2"])
    rows = ROW.findall(capsys.readouterr().out)
    # Images of 64 pixels in four tiles: the seams are at 32, and 31.5 pixels is as far as it gets.
    assert [int(row[0]) for row in rows] == [0, 16]
    assert [float(row[1]) for row in rows] == [1.0, 0.25]
    for _, _, same, largest, typical in rows:
        assert 0 <= float(same) <= 1 and 0 <= float(typical) <= float(largest) <= 1
    assert float(rows[0][3]) > 0  # the network sees across the seams


@pytest.mark.parametrize("of_a_detector", [True, False])
def test_nothing_to_compare_is_one_sentence(
    of_a_detector, tiny_run, tiny_segmentation, tiny_masks, refused_command
):
    folder = tiny_run if of_a_detector else tiny_segmentation
    image = next((tiny_masks / "JPEGImages").iterdir())
    code, line = refused_command(main, folder / "model.safetensors", image)
    assert code == 1
    assert ("holds a detector" if of_a_detector else "no image is larger than a tile") in line
