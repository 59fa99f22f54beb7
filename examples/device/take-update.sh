#!/bin/sh
# Applies one file from the downlink, and says what to do with it.
#
#   usage: take-update.sh DEVICE FILE       prints a verdict; the exit code is that of cdcca apply
#          take-update.sh --verdict CODE    the verdict on an exit code, and nothing else
#
#   done      the device has it                          remove the file
#   obsolete  the device has had a newer one             remove the file
#   wait      an earlier one is still to come            keep the file, fetch what is missing
#   later     not the file's fault: wrong settings, no   keep the file, try again
#             memory, disk full, stopped, or the
#             runtime refused it and the device went back
#   refuse    damaged, hostile, unsigned, too new, or    move it aside, tell the cloud
#             worse on the device's own frames
#
# NOTIFY is the command that makes the runtime load the new overlay (apply --notify), NOTIFY_TIMEOUT
# its time limit in seconds, IF_BETTER labelled frames that decide (apply --if-better), LOG the file
# that gets a line of what was done (log.jsonl in the device folder, which cdcca inspect reads).
set -eu

verdict() {
  case $1 in
    0) echo 'done' ;;
    79) echo obsolete ;;
    78) echo wait ;;
    2 | 69 | 73 | 81 | 129 | 130 | 137 | 141 | 143) echo later ;;
    *) echo refuse ;;
  esac
}

if [ "${1:-}" = --verdict ]; then
  verdict "${2:?usage: take-update.sh --verdict CODE}"
  exit
fi
device=${1:?usage: take-update.sh DEVICE FILE}
file=${2:?usage: take-update.sh DEVICE FILE}
for needed in "$device/device.json" ${IF_BETTER:+"$IF_BETTER"}; do
  [ -e "$needed" ] || { # no fault of the update's
    echo later
    echo "take-update.sh: $needed is missing" >&2
    exit 69
  }
done

set -- apply "$device" "$file" --quiet
[ -z "${NOTIFY:-}" ] || set -- "$@" --notify "$NOTIFY"
[ -z "${NOTIFY_TIMEOUT:-}" ] || set -- "$@" --notify-timeout "$NOTIFY_TIMEOUT"
[ -z "${IF_BETTER:-}" ] || set -- "$@" --if-better "$IF_BETTER"
code=0
cdcca "$@" --json >>"${LOG:-/dev/null}" || code=$?
verdict "$code"
exit "$code"
