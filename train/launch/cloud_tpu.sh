#!/bin/bash
# A transfer on a Cloud TPU slice, started anew after each preemption until it is finished:
#
#   NAME=hydrahead ZONE=us-east5-a TYPE=v5p-128 VERSION=v2-alpha-tpuv5 \
#     train/launch/cloud_tpu.sh configs/qwen3_1p7b_3to1.py run=/mnt/runs/qwen3
#
# The run folder, the teacher and the data must be on a file system that all workers share, such as
# Filestore or a bucket that MOUNT mounts. Needs gcloud, with a project and permission to make TPUs.

set -euo pipefail

NAME="${NAME:-hydrahead}"
ZONE="${ZONE:?set ZONE, such as us-east5-a}"
TYPE="${TYPE:?set TYPE, the accelerator type, such as v5p-128}"
VERSION="${VERSION:?set VERSION, the TPU software version, such as v2-alpha-tpuv5}"
SPOT="${SPOT-1}"         # empty for machines that are not preempted
MOUNT="${MOUNT:-true}"   # a command for every worker that mounts the shared file system
SOURCE="$(cd "$(dirname "$0")/../.." && pwd)"

run=""
for argument in "$@"; do
  [[ "$argument" == run=* ]] && run="${argument#run=}"
done
if [[ -z "$run" ]]; then
  echo "usage: NAME= ZONE= TYPE= VERSION= $0 CONFIG run=FOLDER [KEY=VALUE ...]" >&2
  exit 1
fi

tpu() { gcloud compute tpus "$@" --zone="$ZONE" --quiet; }
on_all_workers() { tpu tpu-vm ssh "$NAME" --worker=all --command="$1"; }
state() { tpu queued-resources describe "$NAME" --format="value(state.state)" 2>/dev/null || true; }

create() {
  echo "asking for $TYPE in $ZONE as $NAME"
  tpu queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$TYPE" \
    --runtime-version="$VERSION" ${SPOT:+--spot}
}

wait_until_active() {
  while true; do
    case "$(state)" in
      ACTIVE) return ;;
      FAILED | SUSPENDED) return 1 ;;
      *) sleep 30 ;;
    esac
  done
}

install() {
  tar --directory="$SOURCE" --exclude=.git --exclude='.venv*' --exclude=runs --create --gzip \
    --file="/tmp/$NAME.tar.gz" .
  tpu tpu-vm scp "/tmp/$NAME.tar.gz" "$NAME:/tmp/$NAME.tar.gz" --worker=all
  on_all_workers "set -e
    mkdir -p ~/hydrahead && tar -xzf /tmp/$NAME.tar.gz -C ~/hydrahead
    python3 -m venv ~/venv && ~/venv/bin/pip install --quiet -e ~/hydrahead'[train,tpu]'
    $MOUNT"
}

delete() { tpu queued-resources delete "$NAME" --force || true; }

arguments="$(printf ' %q' "$@")"
failures=0
while true; do
  if [[ "$(state)" != ACTIVE ]]; then
    [[ -z "$(state)" ]] || delete
    create
    wait_until_active || continue
    install
  fi
  began=$SECONDS
  # "auto": jax asks the machine's metadata which workers there are. Every start continues from the
  # last checkpoint.
  if on_all_workers "cd ~/hydrahead && JAX_COMPILATION_CACHE_DIR=~/compiled \
    train/launch/until_finished.sh $(printf '%q' "$run") \
    ~/venv/bin/python -m train transfer$arguments --coordinator auto"; then
    echo "finished; delete the machines with:"
    echo "  gcloud compute tpus queued-resources delete $NAME --zone=$ZONE --force"
    exit 0
  fi
  # ssh does not tell a refused config from a lost machine, but the one fails soon each time.
  if [[ "$(state)" == ACTIVE ]] && ((SECONDS - began < 300)); then
    failures=$((failures + 1))
  else
    failures=0
  fi
  if ((failures == 3)); then
    echo "failed three times within five minutes, see above; $NAME is still there" >&2
    exit 1
  fi
  echo "interrupted; starting again"
  sleep 30
done
