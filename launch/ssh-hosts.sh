#!/usr/bin/env bash
# Train on a list of machines that need not be alike; they share a folder, and you may ssh to each without a password:
#
#   launch/ssh-hosts.sh "node1 node2 me@node3" --config=configs/igpt_cifar.py --workdir=/shared/runs/igpt
#
# The first machine coordinates, and the others must reach it by the name given here. Ctrl-C stops all after the same
# step, saved; the same command goes on. When one fails, all end. `--config.shares=auto` gives fast machines more work.
#
# Change, in the environment: FOLDER, where this repository is on all of them (here: the current folder); PYTHON, such
# as .venv/bin/python; PORT, which the first machine's firewall lets through.
set -u
if [ $# -lt 2 ]; then
  sed -n '2,4p' "$0" >&2
  exit 2
fi
read -r -a hosts <<<"$1"
shift
folder=${FOLDER:-$PWD}
port=${PORT:-$((20000 + RANDOM % 10000))}
# A machine that is gone says nothing more: without these options, ssh would wait for it for hours.
connect=(ssh -o BatchMode=yes -o ConnectTimeout=15 -o ServerAliveInterval=15)
state=$(mktemp -d)
trap 'rm -rf "$state"' EXIT

start() { # one process; its lines get the host's name, and its exit code goes to a file
  trap '' INT # Ctrl-C reaches this whole group, and is answered below
  local host=${hosts[$1]} command
  command="cd $(printf %q "$folder") && echo jtasks-pid \$\$ && exec $(printf %q "${PYTHON:-python}") main.py$(printf ' %q' "${@:2}")"
  command+=" --coordinator=${hosts[0]#*@}:$port --num-processes=${#hosts[@]} --process-id=$1"
  "${connect[@]}" "$host" "$command" 2>&1 </dev/null | while IFS= read -r line; do
    # Ours comes before all that the run prints: what looks like it later is the run's, and no number is to be killed.
    if [[ ! -e $state/$1.pid && $line =~ ^jtasks-pid\ ([0-9]{1,10})$ ]]; then
      echo "${BASH_REMATCH[1]}" >"$state/$1.pid"
    else
      printf '%s: %s\n' "$host" "$line"
    fi
  done
  echo "${PIPESTATUS[0]}" >"$state/$1.code"
}

signal() { # send it to all that still run
  local i
  for i in "${!hosts[@]}"; do
    if [ -s "$state/$i.pid" ] && [ ! -s "$state/$i.code" ]; then
      "${connect[@]}" "${hosts[$i]}" "kill -$1 '$(cat "$state/$i.pid")'" </dev/null 2>/dev/null
    fi
  done
}

trap 'echo "stopping all" >&2; signal TERM' INT TERM
for i in "${!hosts[@]}"; do start "$i" "$@" & done

result=0 deadline=
while :; do
  running=0
  for i in "${!hosts[@]}"; do
    if [ ! -s "$state/$i.code" ]; then
      running=1
    elif read -r code <"$state/$i.code" && [ "$code" != 0 ] && [ "$result" = 0 ]; then
      result=$code deadline=$((SECONDS + 60))
      echo "${hosts[$i]} ended with exit code $code" >&2
    fi
  done
  [ "$running" = 0 ] && break
  if [ -n "$deadline" ] && [ "$SECONDS" -ge "$deadline" ]; then
    signal KILL # they had time to end on their own
  fi
  sleep 0.5
done
exit "$result"
