#!/usr/bin/env bash
# Train under Slurm, one process a GPU.
#
#   GPUS=32 tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of tools/train.py]
#
# GPUS is the total (default: 8), GPUS_PER_NODE how many of them a node gives (default: 8, or GPUS if that is less),
# CPUS_PER_TASK the processors of each process (default: 5). SRUN_ARGS goes to srun as it is, such as
# SRUN_ARGS="--time=48:00:00 --signal=TERM@120": two minutes before the end of its time, the run saves and stops, and
# --resume goes on with it. PYTHON names the interpreter.
set -euo pipefail

die() { echo "slurm_train: $*" >&2; exit 2; }
[ $# -ge 3 ] || die "usage: GPUS=32 tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of tools/train.py]"
partition=$1 job=$2 config=$3
shift 3

is_count() { [[ $1 =~ ^[1-9][0-9]*$ ]]; }
gpus=${GPUS:-8} cpus=${CPUS_PER_TASK:-5}
is_count "$gpus" || die "GPUS must be a positive whole number, got '$gpus'"
here=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
is_count "$here" || die "GPUS_PER_NODE must be a positive whole number, got '$here'"
is_count "$cpus" || die "CPUS_PER_TASK must be a positive whole number, got '$cpus'"
[ $((gpus % here)) -eq 0 ] || die "$gpus GPUs cannot be split evenly over nodes of $here"
[ -f "$config" ] || die "no config file '$config'"
command -v srun > /dev/null || die "no srun on this machine; without Slurm, use tools/dist_train.sh"

tools=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$(dirname "$tools")${PYTHONPATH:+:$PYTHONPATH}"
# shellcheck disable=SC2086  # SRUN_ARGS is a list of words
exec srun --partition="$partition" --job-name="$job" --gres=gpu:"$here" --ntasks="$gpus" --ntasks-per-node="$here" \
  --cpus-per-task="$cpus" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
  "${PYTHON:-python}" -u "$tools/train.py" "$config" --launcher slurm "$@"
