#!/usr/bin/env bash
# Runs a command again while it ends unfinished.
#
#   bash launch/cluster/restart.sh python -m launch.train --config ... --workdir ...
#
# launch.train ends with 75 if it was stopped before its last step and saved, or if another process
# of the run was lost: the same command then goes on from the last checkpoint. Any other code is
# passed on. RESTARTS (100) is how often at most; RESTART_SECONDS (10) is the pause before each.
# SIGTERM and SIGINT reach the command and end the restarts.
set -uo pipefail

fail() {
  echo "restart.sh: error: $*" >&2
  exit 2
}

restarts=${RESTARTS:-100}
pause=${RESTART_SECONDS:-10}
if (($# == 0)); then fail "give the command to run"; fi
for name in restarts pause; do
  if [[ ! ${!name} =~ ^[0-9]+$ ]]; then
    fail "RESTARTS and RESTART_SECONDS are whole numbers, not ${!name}"
  fi
done
stopped=0
child=0

hand_on() {
  stopped=1
  if ((child)); then kill -TERM "$child" 2>/dev/null; fi
}
trap hand_on TERM INT

for ((attempt = 0; ; attempt++)); do
  "$@" &
  child=$!
  if ((stopped)); then kill -TERM "$child" 2>/dev/null; fi # a signal came before the number was known
  wait "$child"
  code=$?
  while kill -0 "$child" 2>/dev/null; do # a signal interrupts `wait` before the command has ended
    wait "$child"
    code=$?
  done
  child=0
  if ((code != 75 || stopped || attempt >= restarts)); then exit "$code"; fi
  echo "restart.sh: unfinished; start $((attempt + 2)) in $pause s" >&2
  sleep "$pause" &
  wait $!
  if ((stopped)); then exit 75; fi
done
