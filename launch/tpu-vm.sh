#!/usr/bin/env bash
# Train on all workers of a Cloud TPU VM slice, single-host or pod:
#
#   launch/tpu-vm.sh NAME ZONE --config=configs/igpt_cifar.py:l --workdir=/mnt/shared/runs/igpt
#
# Each worker finds the others through the TPU's metadata. --workdir, and --config.data.dir, must be in a bucket, as in
# --workdir=gs://BUCKET/runs/igpt (pip install "jtasks[buckets]" on the workers; the service account of the TPU needs
# to write there), or in a folder that all workers have mounted, such as Filestore. The run does not depend on this
# machine: when the connection is lost, the same command shows its output again. Ctrl-C stops all after the same step,
# saved; the same command goes on, also after a preemption.
#
# Change, in the environment: FOLDER, where this repository is on the workers (jtasks, in the home folder); PYTHON.
# Once, to get a slice as soon as there is one (after the preemption of a spot slice: delete it, and ask again):
#   gcloud compute tpus queued-resources create NAME --node-id=NAME --zone=ZONE --spot \
#     --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite
# Once, to put jtasks there:
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all \
#     --command='git clone REPOSITORY jtasks && cd jtasks && pip install -e . "jax[tpu]"'
set -u
if [ $# -lt 3 ]; then
  sed -n '2,4p' "$0" >&2
  exit 2
fi
name=$1 zone=$2
shift 2

on_all() { # a worker that was preempted says nothing more: without the flag, ssh would wait for it for hours
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --ssh-flag="-o ServerAliveInterval=15" --command="$1"
}

# On each worker: start the run apart from the connection, and show what it writes until it ends. Its exit code goes to
# a file, and so does the number of the shell around it, which is recognized by its last word. gcloud connects again
# when the connection is lost, and sends the same command: a run that has ended since is not started a second time.
# shellcheck disable=SC2016 # the workers expand it
watch='
if [ "$(cat ~/.jtasks.start 2>/dev/null)" = "$start" ]; then
  echo "connected to $(hostname) again" >&2
elif grep -qs jtasks-run "/proc/$(cat ~/.jtasks.pid 2>/dev/null)/cmdline"; then
  echo "a run is under way on $(hostname): this is its output" >&2
else
  rm -f ~/.jtasks.code
  : >~/jtasks.log # tail may come before the run
  setsid bash -c '\''trap : TERM; "$@"; echo $? >~/.jtasks.code'\'' jtasks-run "$@" </dev/null >>~/jtasks.log 2>&1 &
  echo $! >~/.jtasks.pid
fi
echo "$start" >~/.jtasks.start
tail -n +1 -f --pid="$(cat ~/.jtasks.pid)" ~/jtasks.log
exit "$(cat ~/.jtasks.code 2>/dev/null || echo 137)"'
words="$(printf %q "${PYTHON:-python3}") main.py$(printf ' %q' "$@")"
command="cd $(printf %q "${FOLDER:-jtasks}") && start=$$-$(date +%s) && set -- $words && $watch"
(
  trap '' INT # Ctrl-C reaches this whole group, and is answered below
  on_all "$command"
) &
running=$!
trap 'echo "stopping all workers" >&2; on_all "pkill -TERM -P \$(cat ~/.jtasks.pid)"' INT TERM
while kill -0 "$running" 2>/dev/null; do
  wait "$running" # a signal ends the waiting, while the run saves
done
wait "$running" # bash remembers how it ended
code=$?
if [ "$code" = 255 ]; then
  echo "the connection was lost; the run goes on: the same command shows its output again" >&2
fi
exit "$code"
