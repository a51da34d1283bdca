#!/usr/bin/env bash
# The comparison of RESULTS.md, from the images to the page. What is finished is not done again.
#
#   recipes/kermany/study.sh DATA [OTHERS]
#
# DATA holds chest_xray/ (the Kaggle layout), kermany_extra/ (manifest.csv, lung_masks/), external/
# (manifest.csv and what it lists) and chestxray14/ (split.csv and its images). OTHERS, if given, holds images that are no chest X-ray,
# see benchmarks/outliers.py.
set -euo pipefail
data=${1:?give the folder that holds chest_xray, kermany_extra, external and chestxray14}
bin=.venv/bin
runs=runs/comparison
results=results/kermany
source recipes/train.sh
checkpoints=(checkpoints/cxr-densenet121 checkpoints/cxr-baseline)

validate() { # NAME FLAGS...
    local folder=runs/reports/$1 kept=$results/reports/$1
    shift
    [ -f "$folder/report.html" ] ||
        "$bin/python" validate.py --model "${checkpoints[@]}" --output_dir "$folder" "$@"
    # All but the X-rays: the gallery and the pages that embed it stay behind.
    mkdir -p "$kept"
    cp "$folder"/*.csv "$folder"/*.json "$kept"
}

keep() { # KIND RUN... : the small files of runs, which every number of RESULTS.md comes from
    local kind=$1
    shift
    for run in "$@"; do
        mkdir -p "$results/$kind/${run##*/}"
        cp "$run"/{metrics,training_args,dataset}.json "$run"/history.csv "$run"/predictions_*.csv \
            "$results/$kind/${run##*/}"
    done
}

kermany=(--dataset "$data/chest_xray")

# Three seeds of each model, on a budget that all can have.
for seed in 42 43 44; do
    for model in densenet121 baseline; do
        train $runs/$model-$seed --config recipes/kermany/64px.yaml "${kermany[@]}" \
            --model $model --seed $seed
    done
done
keep seeds $runs/{densenet121,baseline}-4?

# The search, on validation images: augmentation by the baseline at 64 pixels, and larger images.
for strength in light medium strong; do
    train runs/search/augment-$strength --config recipes/kermany/search-$strength.yaml "${kermany[@]}"
done
for model in densenet121 baseline; do
    train runs/search/128px-$model --config recipes/kermany/128px.yaml "${kermany[@]}" --model $model
    train runs/search/two-stage-$model --config recipes/kermany/two-stage.yaml "${kermany[@]}" \
        --model $runs/$model-42
done
keep search runs/search/*

# The leak: all 5,824 images pooled, split by image or by patient.
mkdir -p runs/pooled/NORMAL runs/pooled/PNEUMONIA
find "$(realpath "$data/chest_xray")" -name '*.jpeg' -print0 | sort -z | xargs -0 sha256sum |
    sort --unique --key 1,1 | cut -c 67- |
    while read -r file; do ln -sf "$file" "runs/pooled/$(basename "$(dirname "$file")")/"; done
shares=(test_share=0.2 validation_share=0.1)
patient='patient_regex=^((?:NORMAL2-)?IM-\d{4}|person\d+_(?:bacteria|virus))'
pooled=(--dataset folder --dataset_path runs/pooled --model densenet121 --image_size 64)
pooled+=(--num_train_epochs 3 --class_weights balanced --ema_decay 0.99 --max_rotation 15)
pooled+=(--max_scale 0.25 --max_shift 0.12 --max_contrast 0.6 --checkpointing_steps 50)
train $runs/split-by-image "${pooled[@]}" --dataset_options "${shares[@]}"
train $runs/split-by-patient "${pooled[@]}" --dataset_options "${shares[@]}" "$patient"
keep leak $runs/split-by-image $runs/split-by-patient

# The models that ship, and what is measured of them.
for model in densenet121 baseline; do
    [ -d checkpoints/cxr-$model ] ||
        "$bin/python" -m recipes.kermany.release $runs/$model-4? runs/search/128px-$model \
            --output_dir checkpoints/cxr-$model
done
masks=(--dataset_options extra="$data/kermany_extra")
validate test "${kermany[@]}" "${masks[@]}"
cp -r runs/reports/test/figures $results/reports/test
for variant in borders corners shift; do
    validate "$variant" "${kermany[@]}" --variant "$variant" --skip_heatmaps
done
for variant in padded lungs only_lungs no_lungs; do
    validate "$variant" "${kermany[@]}" "${masks[@]}" --variant "$variant" --skip_heatmaps
done
for set in actualmed covid_cxnet openist; do
    validate $set --dataset "$data/external/manifest.csv" --dataset_options "where=file=^$set/" \
        --skip_heatmaps
done
"$bin/python" -m recipes.kermany.nih "$data/chestxray14" runs/nih.csv
validate nih_pa --dataset runs/nih.csv \
    --dataset_options root="$data/chestxray14" "where=source=^nih-PA" --skip_heatmaps

[ $# -lt 2 ] ||
    "$bin/python" benchmarks/outliers.py "$data" "$2" $results/outliers "${checkpoints[@]}"

for model in "${checkpoints[@]}"; do
    "$bin/python" -m recipes.kermany.evidence "$model" \
        $results/reports/{borders,corners,padded,lungs,only_lungs,no_lungs,shift} \
        $results/reports/{nih_pa,actualmed,covid_cxnet,openist}
done
"$bin/python" -m recipes.results results RESULTS.md
"$bin/python" -m evaluation.table "${checkpoints[@]}" --readme README.md --block kermany
