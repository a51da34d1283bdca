#!/usr/bin/env bash
# What equalization, lung crops and lung masks do to a classifier. What is finished is not done again.
#
#   recipes/lungs/windows.sh DATA MANIFEST
#
# DATA holds chest_xray/ (the Kaggle layout), kermany_extra/ (manifest.csv, lung_masks/), external/
# and adults/; MANIFEST is the CSV file of recipes.gpu.manifest.
set -euo pipefail
data=${1:?give the folder that holds chest_xray, kermany_extra, external and adults}
manifest=${2:?give the CSV file of recipes.gpu.manifest}
bin=.venv/bin runs=runs/windows results=results/lungs/windows
lungs=(--lungs checkpoints/cxr-lungs)
masks=(--dataset_options extra="$data/kermany_extra")
names=(plain histogram clahe crop mask swap)
source recipes/train.sh

learn() { # NAME SEED FLAGS...
    train $runs/$1-$2 --config recipes/lungs/window.yaml --dataset "$data/chest_xray" --seed "$2" \
        "${@:3}"
}

validate() { # SET SEED FLAGS...
    local folder=$runs/reports/$1-$2 kept=$results/$1-$2 models=("${names[@]/#/$runs/}")
    models=("${models[@]/%/-$2}")
    shift 2
    [ -f "$kept.csv" ] && return
    rm -rf "$folder"
    "$bin/python" validate.py --model "${models[@]}" --output_dir "$folder" "$@"
    [ ! -f "$folder/saliency.csv" ] || cp "$folder/saliency.csv" "$results/validation-heat-${kept##*-}.csv"
    cp "$folder/predictions.csv" "$kept.csv"
}

mkdir -p $results
for seed in 42 43 44; do
    learn plain $seed
    learn histogram $seed --equalize histogram
    learn clahe $seed --equalize clahe
    learn crop $seed --crop lungs "${lungs[@]}"
    learn mask $seed --mask lungs "${lungs[@]}"
    learn swap $seed --swap_background 0.5 "${lungs[@]}"
    validation=(--dataset "$data/chest_xray" --split validation "${masks[@]}")
    validate validation $seed "${validation[@]}" --curves 0 --gallery 0
    validate shift $seed "${validation[@]}" --variant shift --skip_heatmaps
    validate no_lungs $seed "${validation[@]}" --variant no_lungs --skip_heatmaps
    validate adults $seed --dataset "$manifest" --split validation --skip_heatmaps \
        --dataset_options root="$data" "where=source=^(chestxray14|rsna)$"
done
"$bin/python" -m recipes.lungs.windows $results
# The winner alone sees the tests.
names=("$(cat $results/winner.txt)")
for seed in 42 43 44; do
    validate test $seed --dataset "$data/chest_xray" --skip_heatmaps
    for set in actualmed openist; do
        validate $set $seed --dataset "$data/external/manifest.csv" --skip_heatmaps \
            --dataset_options "where=file=^$set/"
    done
done
"$bin/python" -m recipes.lungs.windows $results
