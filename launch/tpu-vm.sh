#!/usr/bin/env bash
# Train on all workers of a Cloud TPU VM slice, single-host or pod:
#
#   launch/tpu-vm.sh NAME ZONE --config=configs/igpt_cifar.py:l --workdir=/mnt/shared/runs/igpt
#
# Each worker finds the others through the TPU's metadata. --workdir, and --config.data.dir, must be in a folder that
# all workers have mounted (Filestore, or Cloud Storage FUSE). Ctrl-C stops all after the same step, saved; the same
# command goes on, also after a preemption.
#
# Change, in the environment: FOLDER, where this repository is on the workers (jtasks, in the home folder); PYTHON.
# Once, to put it there:
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all \
#     --command='git clone REPOSITORY jtasks && cd jtasks && pip install -e . "jax[tpu]"'
set -u
if [ $# -lt 3 ]; then
  sed -n '2,4p' "$0" >&2
  exit 2
fi
name=$1 zone=$2
shift 2

on_all() {
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}

command="cd $(printf %q "${FOLDER:-jtasks}") && echo \$\$ >~/.jtasks.pid && exec ${PYTHON:-python3} main.py$(printf ' %q' "$@")"
(
  trap '' INT # Ctrl-C reaches this whole group, and is answered below
  on_all "$command"
) &
running=$!
trap 'echo "stopping all workers" >&2; on_all "kill -TERM \$(cat ~/.jtasks.pid)"' INT TERM
while kill -0 "$running" 2>/dev/null; do
  wait "$running" # a signal ends the waiting, while the run saves
done
wait "$running" # bash remembers how it ended
exit
