#!/usr/bin/env bash
# Extended GRPO on several nodes under slurm: one torchrun a node, one process a GPU. What follows goes to the run:
#
#   sbatch --nodes 4 --gpus-per-node 8 scripts/slurm_grpo.sh --config my_run.yaml --output_dir runs/grpo
#
# Submit from the checkout, which every node must see, as it must the output folder. Ask `limner plan ... --gpus 32` first
# whether it fits. To go on with a run that was stopped, submit the same line with --resume_from_checkpoint last.
#
#SBATCH --job-name=limner-grpo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
set -euo pipefail

# slurm runs a copy of this script from its own folder.
cd "${SLURM_SUBMIT_DIR:?submit this with sbatch}"
if [[ -f .venv/bin/activate ]]; then
    # shellcheck disable=SC1091
    source .venv/bin/activate
fi

# The processes meet at the first node; the port comes from the job, so that two jobs on a node do not meet.
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
port=$((20000 + SLURM_JOB_ID % 20000))

# Since slurm 22.05 srun does not inherit --cpus-per-task.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"

# A node that fails takes the others down, instead of leaving them to wait in a collective.
srun --ntasks-per-node=1 --kill-on-bad-exit=1 \
    torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" \
    --nproc-per-node "${SLURM_GPUS_ON_NODE:?ask for GPUs: --gpus-per-node}" \
    --rdzv-id "$SLURM_JOB_ID" \
    --rdzv-backend c10d \
    --rdzv-endpoint "${hosts[0]}:$port" \
    -m limner.train.grpo "$@"
