#!/bin/bash
# A transfer on GPU nodes under SLURM, one process for each GPU:
#
#   sbatch --nodes=4 train/launch/slurm.sh configs/qwen3_1p7b_3to1.py \
#     run=/shared/runs/qwen3 mesh.data=1 mesh.fsdp=-1
#
# The run folder, the teacher and the data must be on a file system that all nodes share. SLURM puts
# the job back into the queue after a failed node or a preemption. Five minutes before the time limit
# SIGTERM has the run saved, and the job queues itself again; every start continues where it was.

#SBATCH --job-name=hydrahead
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log

set -euo pipefail

run=""
for argument in "$@"; do
  [[ "$argument" == run=* ]] && run="${argument#run=}"
done
if [[ -z "$run" ]]; then
  echo "usage: sbatch [--nodes=N] $0 CONFIG run=FOLDER [KEY=VALUE ...]" >&2
  exit 1
fi

# Where `pip install -e ".[train,cuda]"` was done; shared by all nodes.
source "${HYDRAHEAD_VENV:-.venv}/bin/activate"

export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.95}"
# Compiled programs are kept, so that a restarted job begins at once.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/hydrahead_jax}"
# On some clusters a proxy for the Internet keeps the processes from finding each other.
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY

# jax reads SLURM's variables: which node runs process 0, how many processes, which GPU is whose.
# All GPUs of a node stay visible to each of its processes, as NCCL needs for NVLink.
code=0
srun --kill-on-bad-exit=0 python -m train transfer "$@" || code=$?

# 0 without finished.json: a signal stopped the run. 75: a process died or was late; the others said
# which one and stopped. Both continue when they are started again.
if ((code == 75)) || { ((code == 0)) && [[ ! -f "$run/finished.json" ]]; }; then
  if ((${SLURM_RESTART_COUNT:-0} < 100)); then
    scontrol requeue "$SLURM_JOB_ID"
  fi
fi
exit "$code"
