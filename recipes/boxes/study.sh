#!/usr/bin/env bash
# A detector from scratch on phantoms, and its boxes beside those of a classifier's heat.
#
#   recipes/boxes/study.sh DATA
#
# DATA holds chestxray14/ (with split.csv and BBox_List_2017.csv). About 10 minutes of one core.
set -euo pipefail
data=${1:?give the folder that holds chestxray14}
bin=.venv/bin run=runs/boxes results=results/boxes

resume=()
compgen -G "$run/checkpoints/step_*" >/dev/null && resume=(--resume_from_checkpoint)
[ -f $run/metrics.json ] || "$bin/accelerate" launch --quiet --num_processes 1 \
    train_detector.py --dataset phantom --dataset_options num_train=1600 image_size=128 \
    --architecture mobilenetv3_small_100 --image_size 128 --fpn_channels 64 --hidden_size 128 \
    --num_proposals 64 --num_train_epochs 3 --per_device_train_batch_size 8 \
    --learning_rate 1e-3 --ema_decay 0.99 --checkpointing_steps 50 --output_dir $run "${resume[@]}"
mkdir -p $results
"$bin/python" -m recipes.boxes.measure checkpoints/cxr-densenet121 $run "$data/chestxray14" $results
"$bin/python" -m recipes.boxes.results $results $run
