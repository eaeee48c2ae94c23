#!/usr/bin/env bash
# Measure a training step on one GPU, what matters most first: launch/measure_gpu.sh FOLDER [MANIFEST]
#
# Numbers and traces go to FOLDER. The first measurement takes two to three minutes, nearly all of it
# compilation; the trials of products and convolutions are kept for the next ones.
# MANIFEST lists audio for the last, which reads and decodes it.
set -euo pipefail

out=${1:?a folder for the results}
manifest=${2:-}
mkdir -p "$out/trials"
export PYTHONUNBUFFERED=1
export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_per_fusion_autotune_cache_dir=$out/trials"

bench() { # NAME COMMAND ARGUMENTS...: goes on after a failure; what XLA says goes to NAME.err
    local name=$1 command=$2
    shift 2
    echo "== $name"
    python3 -m spidr_jax.bench "$command" "$@" --json "$out/$name.json" 2>"$out/$name.err" |
        tee "$out/$name.log" || tail -n 5 "$out/$name.err"
}

base=(--batch 16 --samples 235600)
bench step step "${base[@]}" --profile "$out/trace"
bench frozen step "${base[@]}" --frozen --profile "$out/trace_frozen"
bench reference step "${base[@]}" --reference
bench no_attention_dropout step "${base[@]}" --set model.encoder_attention_dropout=0
bench remat step "${base[@]}" --set memory.remat=True
bench memory memory
if [[ -n $manifest ]]; then
    bench data data --manifest "$manifest" --threads "$(nproc)"
fi
