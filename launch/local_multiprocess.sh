#!/usr/bin/env bash
# Several training processes on this machine: one per GPU, say, or to try a run of several processes.
#
#   launch/local_multiprocess.sh N --config=configs/base.py [--config.FIELD=VALUE ...]
#
# N processes share the GPUs in equal parts; without GPUs they run on the CPU. SIGINT (Ctrl-C) and
# SIGTERM reach all of them: they save and end. Where one fails, the others end too, the hard way
# after a minute. The exit status is that of the first that failed, else 0. Needs bash 5.1.
#
# PYTHON   the interpreter (python)
# GPUS     how many GPUs to share (those that nvidia-smi lists, or CUDA_VISIBLE_DEVICES leaves)
set -uo pipefail
set -m # a group of its own for each process: the terminal's Ctrl-C comes to this script alone

if (($# < 2)) || ! [[ $1 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: $0 N --config=FILE [--config.FIELD=VALUE ...]" >&2
    exit 2
fi
number=$1
shift
python=${PYTHON:-python}

if [[ -z ${GPUS:-} ]]; then
    if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
        IFS=, read -ra visible <<<"$CUDA_VISIBLE_DEVICES"
        GPUS=${#visible[@]}
    else
        GPUS=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU')
    fi
fi
if ((GPUS % number)); then
    echo "error: $GPUS GPUs cannot be shared equally by $number processes" >&2
    exit 2
fi

port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])') || exit 2
export JAX_COORDINATOR_ADDRESS=127.0.0.1:$port
export JAX_NUM_PROCESSES=$number

running=()
for name in INT TERM; do
    trap 'kill -s '$name' "${running[@]}" 2>/dev/null' "$name"
done
timer=
trap 'kill -s KILL "${running[@]}" ${timer:+"-$timer"} 2>/dev/null' EXIT

for ((i = 0; i < number; i++)); do
    if ((GPUS)); then
        share=$((GPUS / number))
        JAX_LOCAL_DEVICE_IDS=$(seq -s, $((i * share)) $(((i + 1) * share - 1)))
        export JAX_LOCAL_DEVICE_IDS
    fi
    JAX_PROCESS_ID=$i "$python" -m spidr_jax.main "$@" &
    running+=($!)
done

status=0
while ((${#running[@]})); do
    ended=
    wait -n -p ended "${running[@]}"
    code=$?
    [[ -n $ended ]] || continue # a signal came
    left=()
    for process in "${running[@]}"; do
        [[ $process == "$ended" ]] || left+=("$process")
    done
    running=("${left[@]}")
    if ((code && !status)); then
        status=$code
        (sleep 60 && kill -s KILL "${running[@]}" 2>/dev/null) &
        timer=$!
    fi
done
exit "$status"
