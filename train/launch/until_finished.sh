#!/bin/bash
# until_finished.sh RUN COMMAND...: runs a training command and passes SIGTERM on to it.
#
# A run that a signal stopped exits with 0, since it is saved and in order; a cluster would take it
# for finished. This exits with 75 unless RUN holds finished.json, and else as the command does.

set -uo pipefail

run="$1"
shift
child='' stopped=''
stop() {
  stopped=1
  [[ -z "$child" ]] || kill -TERM "$child" 2>/dev/null
}
trap stop TERM INT  # first: a signal that comes while the command starts must reach it too
"$@" &
child=$!
[[ -z "$stopped" ]] || stop
wait "$child"
code=$?
# A trap ends the first wait early, with 128 + 15 or 128 + 2.
if ((code == 143 || code == 130)); then
  wait "$child"
  after=$?
  ((after == 127)) || code=$after
fi
if ((code == 0)) && [[ ! -f "$run/finished.json" ]]; then
  exit 75
fi
exit "$code"
