#!/bin/sh
# A job on this machine alone: launch/local.sh [recipe.toml] [--flags]
#
# NODE_PROCESSES   a number, gpu, cpu or auto [auto]
# NODE_RESTARTS    how often workers may fail [100]
set -eu
exec torchrun \
  --standalone \
  --nproc-per-node "${NODE_PROCESSES:-auto}" \
  --max-restarts "${NODE_RESTARTS:-100}" \
  "$(dirname "$0")/train.py" "$@"
