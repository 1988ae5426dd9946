#!/usr/bin/env bash
# Train on several processes, one a GPU, on one machine or several.
#
#   tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
#
# GPUS is the total. With NNODES, NODE_RANK and MASTER_ADDR set (MASTER_PORT: default 29500), it is split
# over the nodes, each of which runs this same command:
#
#   NNODES=4 NODE_RANK=0 MASTER_ADDR=10.0.0.1 tools/dist_train.sh configs/poa/vitl_in1k.py 32
#
# A machine without GPUs runs the processes on its processors (gloo). PYTHON names the interpreter.
set -euo pipefail

die() { echo "dist_train: $*" >&2; exit 2; }
[ $# -ge 2 ] || die "usage: tools/dist_train.sh CONFIG GPUS [options of tools/train.py]"
config=$1 total=$2
shift 2

is_count() { [[ $1 =~ ^[1-9][0-9]*$ ]]; }
nodes=${NNODES:-1}
[ -f "$config" ] || die "no config file '$config'"
is_count "$total" || die "GPUS must be a positive whole number, got '$total'"
is_count "$nodes" || die "NNODES must be a positive whole number, got '$nodes'"
[ $((total % nodes)) -eq 0 ] || die "$total GPUs cannot be split evenly over $nodes nodes"
here=$((total / nodes))

python=${PYTHON:-python}
devices=$("$python" -c 'import torch; print(torch.cuda.device_count())') ||
  die "'$python' cannot import torch (activate the environment or set PYTHON)"
processors=$("$python" -c 'import os; print(len(os.sched_getaffinity(0)))')
if [ "$devices" -gt 0 ]; then
  [ "$here" -le "$devices" ] || die "$here GPUs asked for on this machine, which has $devices"
else
  [ "$here" -le "$processors" ] ||
    die "$here processes asked for on this machine, which has no GPU and $processors processors"
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((processors / here))}
fi

if [ "$nodes" -gt 1 ]; then
  [ -n "${MASTER_ADDR:-}" ] || die "NNODES=$nodes needs MASTER_ADDR, the address of the node with NODE_RANK=0"
  [[ ${NODE_RANK:-} =~ ^[0-9]+$ ]] && [ "$NODE_RANK" -lt "$nodes" ] ||
    die "NNODES=$nodes needs NODE_RANK from 0 to $((nodes - 1)), got '${NODE_RANK:-}'"
  rendezvous=(--nnodes="$nodes" --node_rank="$NODE_RANK" --master_addr="$MASTER_ADDR" --master_port="${MASTER_PORT:-29500}")
else
  rendezvous=(--standalone)  # a free port, so that several runs fit on one machine
fi

tools=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$(dirname "$tools")${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" "$tools/torchrun.py" "${rendezvous[@]}" --nproc_per_node="$here" \
  "$tools/train.py" "$config" --launcher pytorch "$@"
