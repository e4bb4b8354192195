#!/usr/bin/env bash
# Make the rows of the table of configs/cls/README.md for classifiers: cells of BCCD, cut out of its photos,
# at equal CPU time. Finished rows are left alone and interrupted ones go on.
#
#   tools/classifiers.sh [-n] BCCD [ROW ...]
#
#   -n     print the commands, run nothing
#   BCCD   folder in VOC's layout
#   ROW    which rows, all by default; NETWORK_SEED, see the end of this file
#
# MINUTES in the environment is the CPU time of each training without evaluation, 1 by default, on one
# thread of the machine on which the seconds of a step below were measured. FLAGS holds further flags.
# Runs go to runs/classifiers/ROW.
set -euo pipefail

here=$(dirname "${BASH_SOURCE[0]}")
print=
if [ "${1:-}" = -n ]; then
    print=yes
    shift
fi
bccd=${1:?folder of BCCD missing: tools/classifiers.sh [-n] BCCD [ROW ...]}
shift
runs=runs/classifiers

. "$here/rows.sh"

# classify ROW NETWORK HUNDREDTHS SEED: steps of 32 images of 32 pixels, each of so many hundredths of a
# second of CPU time; the rate of the paper, a cosine over the whole run.
classify() {
    local steps=$((${MINUTES:-1} * 6000 / $3))
    train_row "$1" train_cls.py --config densenet40_k12_cifar10 --data "$bccd" --data.layout crops \
        --model.classifier "$2" --size 32 --batch-size 32 --seed "$4" --epochs 1000 \
        --trainer.max_steps "$steps" --trainer.check_val_every_n_epoch 1000 --data.augmentation cifar \
        --model.args.crop_pct 1 --model.optimizer.base_batch 64 --model.schedule.name cosine \
        --model.schedule.warmup 0.1 --trainer.log_every_n_steps 5
}

row() {
    local seed=${1##*_}
    case $1 in
    densenet40_*) classify "$1" densenet40_k12 108 "$seed" ;;
    densenet100bc_*) classify "$1" densenet100bc_k12 171 "$seed" ;;
    densenet121_*) classify "$1" densenet121_features 25 "$seed" ;;
    timm_*) classify "$1" densenet121 25 "$seed" ;;
    torchvision_*) classify "$1" torchvision:densenet121 24 "$seed" ;;
    *) unknown "$1" ;;
    esac
}

rows=()
for seed in 0 1 2; do
    for network in densenet121 timm torchvision densenet40 densenet100bc; do
        rows+=("${network}_$seed")
    done
done
each "$@"
