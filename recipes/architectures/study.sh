#!/usr/bin/env bash
# Every architecture of the survey side by side. What is finished is not done again.
#
#   recipes/architectures/study.sh DATA MANIFEST [IMAGENET]
#
# DATA holds chest_xray/ (the Kaggle layout), kermany_extra/ (manifest.csv, lung_masks/), chestxray14/
# and adults/; MANIFEST is the CSV file of recipes.gpu.manifest; IMAGENET the weights of
# tf_efficientnet_lite0.
set -euo pipefail
data=${1:?give the folder that holds chest_xray, kermany_extra, chestxray14 and adults}
manifest=${2:?give the CSV file of recipes.gpu.manifest}
imagenet=${3:-}
bin=.venv/bin runs=runs/architectures results=results/architectures
mkdir -p $results
source recipes/train.sh

learn() { # NAME FLAGS...
    train $runs/$1 --config recipes/architectures/common.yaml --dataset "$data/chest_xray" "${@:2}"
}

kermany() { # SEED: those that train in minutes have three seeds
    learn baseline-$1 --model baseline --seed $1
    learn small_vit-$1 --model small_vit --learning_rate 5e-4 --seed $1
    learn vit_without_spt-$1 --model small_vit --model_options shifted_patches=false \
        --learning_rate 5e-4 --seed $1
    learn vit_without_lsa-$1 --model small_vit --model_options local_attention=false \
        --learning_rate 5e-4 --seed $1
    learn vit_without_both-$1 --model small_vit --learning_rate 5e-4 --seed $1 \
        --model_options shifted_patches=false local_attention=false
    learn conformer_mini-$1 --model conformer_mini --learning_rate 5e-4 --seed $1
    learn resnet18-$1 --model resnet18 --seed $1
    learn densenet_reduced-$1 --model densenet121 --seed $1 \
        --model_options 'block_config=[3,6,12,8]' growth_rate=16
}

kermany 42
learn densenet121-42 --model densenet121
learn vit_tiny-42 --model vit_tiny_patch16_224 --learning_rate 5e-4
learn efficientnet_b0-42 --model efficientnet_b0
learn resnet50-42 --model resnet50
learn inception_v3-42 --model inception_v3
for seed in 42 43 44; do
    learn efficientnet_lite0-$seed --model tf_efficientnet_lite0 --seed $seed
    [ -z "$imagenet" ] ||
        learn efficientnet_lite0_imagenet-$seed --model tf_efficientnet_lite0 --seed $seed \
            --learning_rate 5e-4 --pretrained "$imagenet"
done
kermany 43
kermany 44
for seed in 43 44; do
    learn densenet121-$seed --model densenet121 --seed $seed
done

models=($runs/*-4?)
validate() { # SET FLAGS...
    local folder=runs/reports/architectures-$1 kept=$results/$1
    shift
    [ -f "$kept.csv" ] && return
    rm -rf "$folder"
    "$bin/python" validate.py --model "${models[@]}" --output_dir "$folder" "$@"
    [ ! -f "$folder/saliency.csv" ] || cp "$folder/saliency.csv" "$kept-heat.csv"
    cp "$folder/predictions.csv" "$kept.csv"
}
set=(--dataset "$data/chest_xray" --dataset_options extra="$data/kermany_extra")
validate validation "${set[@]}" --split validation --curves 0 --gallery 0
validate shift "${set[@]}" --split validation --variant shift --skip_heatmaps
validate adults --dataset "$manifest" --split validation --skip_heatmaps \
    --dataset_options root="$data" "where=source=^(chestxray14|rsna)$"
validate test --dataset "$data/chest_xray" --skip_heatmaps
for run in "${models[@]}"; do
    mkdir -p "$results/runs/${run##*/}"
    cp "$run"/{metrics,training_args,dataset}.json "$run"/history.csv "$results/runs/${run##*/}"
done
"$bin/python" -m recipes.architectures.speed $results "${models[@]}"
"$bin/python" -m recipes.architectures.results $results
