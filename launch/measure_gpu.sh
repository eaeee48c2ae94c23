#!/usr/bin/env bash
# Measure a training step on one GPU, what matters most first: launch/measure_gpu.sh FOLDER [MANIFEST]
#
# Numbers, traces and the programs' texts go to FOLDER. The first measurement takes two to three minutes, nearly
# all of it compilation; the trials of products and convolutions are kept for the next ones.
# MANIFEST lists audio for the last, which compares training on files with training on kept batches.
set -euo pipefail

out=${1:?a folder for the results}
manifest=${2:-}
mkdir -p "$out/trials"
export PYTHONUNBUFFERED=1
flags=${XLA_FLAGS:-}
export XLA_FLAGS="$flags --xla_gpu_per_fusion_autotune_cache_dir=$out/trials"
export TF_CPP_MIN_LOG_LEVEL=0 TF_CPP_VMODULE=autotuner=2,config_assigner=2,config_runner=2 # when each trial ran

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
for flag in xla_gpu_blas_max_algorithms=16 xla_gpu_experimental_enable_fusion_autotuner=false; do
    XLA_FLAGS="$flags --$flag" bench "${flag%%=*}" step "${base[@]}" # what fewer trials save and cost
done
bench kernels kernels "${base[@]}" --program "$out/step.hlo"
bench no_attention_dropout step "${base[@]}" --set model.encoder_attention_dropout=0
bench remat step "${base[@]}" --set memory.remat=True
bench parts step "${base[@]}" --parts
bench memory memory
if [[ -n $manifest ]]; then
    bench loop loop --set "data.manifest=$manifest" --set data.planned_devices=1 --steps 200
fi
