#!/usr/bin/env bash
# A training run on a Cloud TPU VM or pod slice: the same command on all its hosts at once.
#
#   export TPU_NAME=my-tpu ZONE=europe-west4-b
#   launch/tpu_vm.sh install
#   launch/tpu_vm.sh train --config=configs/base.py --config.data.manifest=/mnt/speech/train-960.csv \
#       --config.workdir=/mnt/runs/base
#   launch/tpu_vm.sh stop        # saves, then ends; `train` with the same flags goes on
#
# TPU_NAME  the TPU VM
# ZONE      where it is
# PROJECT   its Google Cloud project, if it is not gcloud's default
# SOURCE    what pip installs on the hosts (git+https://..., a wheel in a bucket mounted there)
#
# The hosts find each other through the TPU's metadata: nothing else is to be set. Data and
# config.workdir must be under the same path on all hosts (Filestore, a bucket mounted by gcsfuse).
# `train` runs in the foreground; with `nohup launch/tpu_vm.sh train ... >run.log 2>&1 &` the run
# goes on when you log out of this machine.
set -euo pipefail
: "${TPU_NAME:?set TPU_NAME}" "${ZONE:?set ZONE}"

on_all_hosts() {
    gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" ${PROJECT:+"--project=$PROJECT"} \
        --worker=all --command="$1"
}

verb=${1:-}
shift || true
case $verb in
install)
    : "${SOURCE:?set SOURCE}"
    on_all_hosts "python3 -m venv spidr && spidr/bin/pip install -q $(printf %q "spidr_jax[tpu] @ $SOURCE")"
    ;;
train)
    (($#)) || { echo "usage: $0 train --config=FILE [--config.FIELD=VALUE ...]" >&2; exit 2; }
    on_all_hosts "spidr/bin/python -m spidr_jax.main$(printf ' %q' "$@")"
    ;;
stop)
    on_all_hosts "pkill -TERM -f 'spidr_jax[.]main'"
    ;;
*)
    echo "usage: $0 install | train --config=FILE ... | stop" >&2
    exit 2
    ;;
esac
