#!/usr/bin/env bash
# Make the rows of the tables of configs/det/README.md for torchvision's detectors. Finished rows are left
# alone and interrupted ones go on, so that the same call can be repeated until all is done.
#
#   tools/detectors.sh [-n] COCO BCCD [ROW ...]
#
#   -n     print the commands, run nothing
#   COCO   folder in COCO's layout with masks, of which eight images are learned by heart
#   BCCD   folder in VOC's layout
#   ROW    which rows, all by default; see the end of this file
#
# FLAGS in the environment holds further flags of every training, for example
#   FLAGS="--trainer.precision bf16-mixed"
# Runs go to runs/detectors/ROW.
set -euo pipefail

here=$(dirname "${BASH_SOURCE[0]}")
print=
if [ "${1:-}" = -n ]; then
    print=yes
    shift
fi
coco=${1:?folder in COCO layout missing: tools/detectors.sh [-n] COCO BCCD [ROW ...]}
bccd=${2:?folder of BCCD missing: tools/detectors.sh [-n] COCO BCCD [ROW ...]}
shift 2
runs=runs/detectors

. "$here/rows.sh"

# overfit ROW DATA DETECTOR ARGS [EPOCHS]: eight images by heart in two steps an epoch, from scratch,
# their shorter side brought to 256 pixels.
overfit() {
    local row=$1 data=$2 detector=$3 args=$4 epochs=${5:-200}
    train_row "$row" train_det.py --config "${detector}_coco" --data "$data" --overfit 8 \
        --batch-size 4 --epochs "$epochs" --data.augmentation none \
        --model.args null --model.args "{min_size: 256, max_size: 320$args}" --model.optimizer.name adamw \
        --model.optimizer.lr 1e-3 --model.optimizer.base_batch 0 \
        --model.optimizer.weight_decay 0.01 --model.schedule.name cosine \
        --model.schedule.warmup 0.1 --trainer.accumulate_grad_batches 1 \
        --trainer.gradient_clip_val 10 --trainer.check_val_every_n_epoch 50 \
        --trainer.log_every_n_steps 1
}

# Drawn scenes, one in six of which shows people of 13 keypoints.
figures() {
    [ -n "$print" ] || python -m densenet_backbones.data.scenes "$runs/figures" \
        --train 80 --val 1 --size 256 --quiet
}

row() {
    case $1 in
    overfit_retinanet)
        # The images are a third as large as they commonly are, and so are the smallest objects.
        overfit "$1" "$coco" retinanet_densenet121_fpn ", anchor_scale: 0.5" 300
        ;;
    overfit_fasterrcnn) overfit "$1" "$coco" fasterrcnn_densenet121_fpn "" ;;
    overfit_maskrcnn)
        # 64 of the proposals of an image are learned from in place of 512
        overfit "$1" "$coco" maskrcnn_densenet121_fpn ", box_batch_size_per_image: 64"
        ;;
    overfit_keypointrcnn)
        figures
        overfit "$1" "$runs/figures" keypointrcnn_densenet121_fpn \
            ", box_batch_size_per_image: 64"
        ;;
    bccd_densenet121 | bccd_resnet50)
        train_row "$1" train_det.py --config "retinanet_${1#bccd_}_bccd" --data "$bccd"
        ;;
    *) unknown "$1" ;;
    esac
}

rows=(
    overfit_retinanet overfit_fasterrcnn overfit_maskrcnn overfit_keypointrcnn
    bccd_densenet121 bccd_resnet50
)
each "$@"
