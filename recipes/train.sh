# For the studies to source, which set $bin. What is finished is not trained again, what was stopped
# goes on.
train() { # OUTPUT_DIR FLAGS...
    local folder=$1
    shift
    [ -f "$folder/metrics.json" ] && return
    local resume=()
    compgen -G "$folder/checkpoints/step_*" >/dev/null && resume=(--resume_from_checkpoint)
    "$bin/accelerate" launch --quiet --num_processes 1 --num_cpu_threads_per_process "$(nproc)" \
        train.py --output_dir "$folder" "$@" "${resume[@]}"
}
