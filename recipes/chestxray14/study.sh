#!/usr/bin/env bash
# The second part of RESULTS.md: 14 findings learnt from few images. What is finished is not done again.
#
#   recipes/chestxray14/study.sh DATA [IMAGENET]
#
# DATA is the folder of ChestX-ray14 with split.csv; IMAGENET the weights of tf_efficientnet_lite0.
set -euo pipefail
data=${1:?give the folder of ChestX-ray14}
imagenet=${2:-}
bin=.venv/bin
runs=runs/chestxray14
results=results/chestxray14
source recipes/train.sh
[ -f $runs.data/split.csv ] || "$bin/python" -m recipes.chestxray14.shrink "$data" $runs.data

learn() { # NAME FLAGS...
    train $runs/$1 --config recipes/chestxray14/finetune.yaml --dataset_path $runs.data "${@:2}"
}

for seed in 42 43 44; do
    [ -z "$imagenet" ] ||
        learn efficientnet_lite0-imagenet-$seed --model tf_efficientnet_lite0 \
            --pretrained "$imagenet" --image_size 96 --seed $seed
    learn baseline-kermany-$seed --model checkpoints/cxr-baseline --image_size 64 --seed $seed
    learn baseline-scratch-$seed --model baseline --image_size 64 --learning_rate 1e-3 --seed $seed
    learn densenet121-kermany-$seed --model checkpoints/cxr-densenet121 --image_size 96 --seed $seed
    learn densenet121-scratch-$seed --model densenet121 --image_size 96 --learning_rate 1e-3 \
        --seed $seed
done

names=()
for run in "$runs"/*; do
    names+=("${run##*/}")
    mkdir -p "$results/seeds/${run##*/}"
    cp "$run"/{metrics,training_args,dataset}.json "$run"/{history,predictions_validation}.csv \
        "$results/seeds/${run##*/}"
done
"$bin/python" -m recipes.chestxray14.floor $runs.data $results
[ -f $runs.report/report.html ] ||
    "$bin/python" validate.py --model "${names[@]/#/$runs/}" --dataset chestxray14 \
        --dataset_path $runs.data --dataset_options split=split.csv --skip_heatmaps \
        --output_dir $runs.report
mkdir -p $results/report
cp $runs.report/context.json $runs.report/predictions.csv $results/report
"$bin/python" -m recipes.chestxray14.gains $results
"$bin/python" -m recipes.results results RESULTS.md
