#!/usr/bin/env bash
# Make the rows of the tables of configs/seg/README.md for CamVid. Finished rows are left alone and
# interrupted ones go on, so that the same call can be repeated until all is done.
#
#   tools/camvid.sh [-n] CAMVID [ROW ...]
#
#   -n       print the commands, run nothing
#   CAMVID   folder with train, trainannot, val and valannot
#   ROW      which rows, all by default; see the end of this file
#
# FLAGS in the environment holds further flags of every training, for example
#   FLAGS="--trainer.precision bf16-mixed --epochs 24"
# Runs go to runs/camvid/ROW.
set -euo pipefail

here=$(dirname "${BASH_SOURCE[0]}")
print=
if [ "${1:-}" = -n ]; then
    print=yes
    shift
fi
camvid=${1:?folder of CamVid missing: tools/camvid.sh [-n] CAMVID [ROW ...]}
shift
runs=runs/camvid

. "$here/rows.sh"

# train ROW CONFIG DATA [FLAG ...]
train() {
    local row=$1 config=$2 data=$3
    shift 3
    train_row "$row" train_seg.py --config "$config" --data "$data" "$@"
}

# The middle 160x160 pixels of eight images spread over the training part: as training and as
# evaluated images, so that a network that learns them by heart shows it.
eight() {
    [ -n "$print" ] || python - "$camvid" "$runs/eight" <<'PYTHON'
import sys
from pathlib import Path

from PIL import Image

camvid, eight = map(Path, sys.argv[1:])
names = sorted(path.stem for path in (camvid / "train").iterdir())
for name in names[:: -(-len(names) // 8)][:8]:
    for folder in ("train", "trainannot"):
        (source,) = (camvid / folder).glob(f"{name}.*")
        with Image.open(source) as image:
            left, top = (image.width - 160) // 2, (image.height - 160) // 2
            crop = image.crop((left, top, left + 160, top + 160))
        for copy in (folder, folder.replace("train", "val")):
            (eight / copy).mkdir(parents=True, exist_ok=True)
            crop.save(eight / copy / f"{name}.png")
PYTHON
}

# overfit ROW CONFIG [FLAG ...]
overfit() {
    local row=$1 config=$2
    shift 2
    eight
    train "$row" "$config" "$runs/eight" --overfit 8 --trainer.log_every_n_steps 1 "$@"
}

weighed=(--model.loss.class_weights median_frequency)
deeplab='{encoder_name: tu-densenet121_features, encoder_weights: null, encoder_output_stride: 16}'
row() {
    case $1 in
    overfit_unet)
        overfit "$1" unet_densenet121_camvid --epochs 300 --ema_decay null \
            --trainer.check_val_every_n_epoch 50 --model.optimizer.lr 1e-2 "${weighed[@]}"
        ;;
    overfit_deeplabv3plus)
        overfit "$1" smp_unet_resnet34_camvid --epochs 300 --ema_decay null \
            --trainer.check_val_every_n_epoch 50 --model.optimizer.lr 1e-2 "${weighed[@]}" \
            --model.segmenter smp:DeepLabV3Plus --model.args "$deeplab"
        ;;
    overfit_fcdensenet56)
        overfit "$1" fcdensenet56_camvid --epochs 250 --batch-size 4 \
            --trainer.check_val_every_n_epoch 25 --model.args '{drop_rate: 0.0}' \
            "${weighed[@]}"
        ;;
    unet) train "$1" unet_densenet121_camvid "$camvid" ;;
    smp_unet) train "$1" smp_unet_resnet34_camvid "$camvid" ;;
    fcdensenet56 | fcdensenet103) train "$1" "${1}_camvid" "$camvid" ;;
    fcdensenet56_finetune | fcdensenet103_finetune)
        train "$1" "${1%_finetune}_camvid_finetune" "$camvid" \
            --init-from "$runs/${1%_finetune}/model.safetensors"
        ;;
    *) unknown "$1" ;;
    esac
}

rows=(
    overfit_unet overfit_deeplabv3plus overfit_fcdensenet56
    unet smp_unet
    fcdensenet56 fcdensenet56_finetune
    fcdensenet103 fcdensenet103_finetune
)
each "$@"
