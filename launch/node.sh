#!/bin/sh
# One node of a job of several. Start the same line on every node, once `keepstep store` runs
# somewhere that outlives them:
#
#   JOB_STORE=store.example:29400 JOB_NAME=gpt-7 JOB_NODES=2:4 launch/node.sh [recipe.toml] [--flags]
#
# JOB_STORE       HOST[:PORT] of the store (needed). If nobody answers there and HOST is this node,
#                 its agent hosts the store.
# JOB_NODES       how many nodes: N, or MIN:MAX (needed)
# JOB_NAME        what this job is called at the store; another one for each job (needed)
# JOB_RDZV_CONF   further settings of the rendezvous, as in docs/elastic.md
# NODE_ADDRESS    this node's address, as the others reach it [what its host name resolves to]
# NODE_PROCESSES  processes on this node: a number, gpu, cpu or auto [auto]
# NODE_TRIES      how often in a row workers of this node may fail without a new commit [3]
# NODE_GRACE      seconds that workers have to save and leave when this node is told to go [30]
set -eu
: "${JOB_STORE:?set it to HOST:PORT of keepstep store}"
: "${JOB_NAME:?set it to a name that no other job at the store has had}"
: "${JOB_NODES:?set it to how many nodes there are: N, or MIN:MAX}"
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${NODE_GRACE:-30}"
export KEEPSTEP_PREEMPTION__GRACE_SECONDS="${NODE_GRACE:-30}"
# exec: signals must reach the agent, not a shell in front of it.
exec keepstep run \
  --nnodes "$JOB_NODES" \
  --nproc-per-node "${NODE_PROCESSES:-auto}" \
  --rdzv-backend keepstep \
  --rdzv-endpoint "$JOB_STORE" \
  --rdzv-id "$JOB_NAME" \
  ${NODE_ADDRESS:+--local-addr "$NODE_ADDRESS"} \
  ${JOB_RDZV_CONF:+--rdzv-conf "$JOB_RDZV_CONF"} \
  --tries "${NODE_TRIES:-3}" \
  "$(dirname "$0")/train.py" "$@"
