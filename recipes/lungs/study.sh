#!/usr/bin/env bash
# The lung segmenter that ships, from the images to its card.
#
#   recipes/lungs/study.sh DATA
#
# DATA holds chest_xray/ (the Kaggle layout), kermany_extra/ (manifest.csv, lung_masks/) and
# external/ (manifest.csv and what it lists).
set -euo pipefail
data=${1:?give the folder that holds chest_xray, kermany_extra and external}
bin=.venv/bin run=runs/lungs results=results/lungs model=checkpoints/cxr-lungs

resume=()
compgen -G "$run/checkpoints/step_*" >/dev/null && resume=(--resume_from_checkpoint)
[ -f $run/metrics.json ] || "$bin/accelerate" launch --quiet --num_processes 1 \
    --num_cpu_threads_per_process "$(nproc)" train_lungs.py --dataset "$data/chest_xray" \
    --dataset_options extra="$data/kermany_extra" --checkpointing_steps 50 --output_dir $run \
    "${resume[@]}"
mkdir -p $results checkpoints
rm -rf $model && cp -r $run $model && rm -r $model/checkpoints
for split in validation test; do
    mv $model/segmentation_$split.csv $results/kermany_$split.csv
done
"$bin/python" -m recipes.lungs.measure $model $results/openist.csv \
    --dataset "$data/external/manifest.csv" --dataset_options "where=file=^openist/"
"$bin/python" -m recipes.lungs.results $results $model

# Where a classifier's heat lies, and whether that tells its errors; no test image of Kermany's.
heat() { # NAME FLAGS...
    "$bin/python" -m recipes.lungs.heat measure checkpoints/cxr-densenet121 $model \
        $results/heat_$1.csv --dataset "${@:2}"
}
heat validation "$data/chest_xray" --split validation
heat shift "$data/chest_xray" --split validation --variant shift
for set in actualmed covid_cxnet openist; do
    heat $set "$data/external/manifest.csv" --dataset_options "where=file=^$set/"
done
"$bin/python" -m recipes.lungs.heat report $results
