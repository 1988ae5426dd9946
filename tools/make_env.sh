#!/usr/bin/env bash
# Makes the Python environment of one stack, once, and prints its path as the last line.
#
#   tools/make_env.sh [onedl|openmmlab|light]     (light: no compiled ops, no mmdet, no mmseg)
#   tools/make_env.sh --ready STACK               (only if it is there already; else fails without a word)
#
# The environment lives outside the checkout, under a name that hashes all that defines it:
# changed pins make a new one, an unchanged environment is found again at once.
#
#   POA_MM_ENVS   where environments are kept   (default: ~/.cache/poa_mm/envs)
#   PYTHON        interpreter to build on       (default: that of a version that the stack supports)
#   MAX_JOBS      compiler processes            (default: number of processors)
set -euo pipefail

ready_only=
if [ "${1:-}" = --ready ]; then ready_only=1; shift; fi
stack=${1:-${STACK:-onedl}}
root=$(cd "$(dirname "$0")/.." && pwd)
requirements=$root/requirements
envs=${POA_MM_ENVS:-$HOME/.cache/poa_mm/envs}

die() { echo "make_env: $*" >&2; exit 1; }
say() { echo "make_env: $*" >&2; }

# What comes on top of the stack itself; torch 2.1 is too old for the libraries of export.
case $stack in
  onedl) pythons="3.11 3.10 3.12" mmcv=onedl-mmcv extras="dev export datasets docs" needed_gib=14 ;;
  openmmlab) pythons="3.11 3.10" mmcv=mmcv extras="dev" needed_gib=14 ;;
  light) pythons="3.12 3.11" mmcv=onedl-mmcv extras="" needed_gib=10 ;;
  *) die "unknown stack '$stack'; valid: onedl, openmmlab, light" ;;
esac

# --- interpreter -------------------------------------------------------------------------
find_python() {
  local candidates=() wanted candidate version
  for wanted in $pythons; do
    # pyenv's command fails for a version that is installed but not active; its interpreter does not.
    candidates+=("python$wanted" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$wanted".*/bin/python)
  done
  [ -z "${PYTHON:-}" ] && candidates+=(python3) || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    case " $pythons " in *" $version "*) echo "$candidate"; return ;; esac
  done
  return 1
}
python=$(find_python) || die "stack '$stack' needs Python ${pythons// / or }; none found (set PYTHON=/path/to/python)"

# --- is it there already? ----------------------------------------------------------------
files=("$requirements/$stack.txt" "$requirements/$stack-build.txt" "$requirements/runtime.txt")
for extra in $extras; do files+=("$requirements/$extra.txt"); done
key=$({ cat "${files[@]}" "$0"; "$python" -VV; uname -sm; } | sha256sum | cut -c1-12)
env=$envs/$stack-$key
ready=$env/.ready
if [ -f "$ready" ]; then echo "$env"; exit 0; fi
[ -z "$ready_only" ] || exit 1

# --- early, in words: what would make the build fail later --------------------------------
if [ "$stack" != light ]; then
  command -v g++ >/dev/null && command -v gcc >/dev/null ||
    die "gcc and g++ are needed to compile mmcv's ops (Debian/Ubuntu: apt-get install build-essential)"
  header=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include") + "/Python.h")')
  [ -f "$header" ] || die "Python headers are missing: $header (Debian/Ubuntu: apt-get install python3-dev)"
fi
mkdir -p "$envs"
free_gib=$(df -Pk "$envs" | awk 'NR==2 {print int($4 / 1048576)}')
[ "$free_gib" -ge $needed_gib ] ||
  die "$envs has $free_gib GiB free, $needed_gib GiB are needed (set POA_MM_ENVS to a larger disk)"

exec 9>"$envs/$stack-$key.lock"
flock 9  # a second call waits for the first instead of building beside it
if [ -f "$ready" ]; then echo "$env"; exit 0; fi

# --- build -------------------------------------------------------------------------------
log=$envs/$stack-$key.log
say "building stack '$stack' in $env"
if [ "$stack" = light ]; then say "about 3 minutes; log: $log"
else say "about 10 minutes, plus 20 to compile mmcv's ops on 2 cores where no wheel is at hand; log: $log"; fi
start=$(date +%s)
rm -rf "$env"
"$python" -m venv "$env" || die "'$python -m venv' failed (Debian/Ubuntu: apt-get install python3-venv)"
step() {
  say "[$(($(date +%s) - start)) s] $1"; shift
  "$@" >>"$log" 2>&1 9>&- || { tail -n 25 "$log" >&2; die "failed: $* (whole log: $log)"; }
}
: >"$log"
pip=("$env/bin/python" -m pip install --disable-pip-version-check --progress-bar off)
pinned=$(sed '/^#/d' "$requirements/$stack.txt")

step "pip and build tools" "${pip[@]}" 'pip>=23.3,<26' -r "$requirements/$stack-build.txt"
pinned_mmcv=$(grep -E "^$mmcv==" <<<"$pinned")
if [ "$stack" = light ]; then
  # From source, and before torch is there: otherwise ops come along, ready-made or compiled.
  export MMCV_WITH_OPS=0
  step "mmcv without ops" "${pip[@]}" --no-cache-dir --no-build-isolation --no-deps --no-binary "$mmcv" "$pinned_mmcv"
  step "torch, OpenMMLab and tools" "${pip[@]}" "${files[@]/#/-r}"
  check="import importlib.util, torch, mmengine, mmpretrain.models
assert importlib.util.find_spec('mmcv._ext') is None, 'mmcv has compiled ops'"
else
  step "torch" "${pip[@]}" $(grep -E '^(torch|torchvision|numpy)[=<]' <<<"$pinned")
  # Build isolation or a cached wheel of another build would give an mmcv without ops, silently.
  export MAX_JOBS=${MAX_JOBS:-$(nproc)} MMCV_WITH_OPS=1
  step "mmcv with its C++ ops" "${pip[@]}" --no-cache-dir --no-build-isolation "$pinned_mmcv"
  # --no-build-isolation: what comes as source is built with the pinned setuptools.
  step "OpenMMLab and tools" "${pip[@]}" --no-build-isolation "${files[@]/#/-r}"
  check="import torch, mmengine, mmdet, mmseg, mmpretrain
from mmcv.ops import nms
boxes = torch.tensor([[0., 0, 2, 2], [0, 0, 2, 2]])
assert len(nms(boxes, torch.tensor([.9, .8]), .5)[1]) == 1, 'mmcv.ops.nms is wrong'"
fi
step "check" "$env/bin/python" -c "$check"
touch "$ready"
say "ready after $(($(date +%s) - start)) s"
echo "$env"
