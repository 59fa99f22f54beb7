#!/usr/bin/env bash
# What cron runs on a device: apply what has come back, send what is new and uncertain.
#
#   usage: cron-device.sh FRAMES OUTBOX INBOX
#   crontab: */15 * * * *  cron-device.sh /var/frames /var/outbox /var/inbox
#
# Silent when all is well, so that cron mails only trouble. One run at a time (flock). No single bad
# file stops it: a bad update goes to INBOX/refused/, a bad frame is named once and left out, and a
# damaged state file is set aside. `--state` remembers which frames were sampled. Other tools (rsync,
# scp, a USB stick) carry the boxes: OUTBOX holds shards, INBOX updates (*.cdcca) and codebooks
# (*.codebook), whose names sort in order. Put a codebook here when the mirror has it already.
# NOTIFY, if it is set, is the command that makes the runtime load a new overlay (apply --notify).
# SERVER, if it is set, is the address of the llama-server that runs the device's model: it answers
# all frames in FRAMES at each run, and pictures go up, so that no model is loaded here.
# log.jsonl in the device folder has a line of every apply and sample: send it up, too, and `cdcca inspect` of the
# folders of many devices shows them in a table. A device's name is that of its folder.
set -euo pipefail
frames=${1:?usage: cron-device.sh FRAMES OUTBOX INBOX}
outbox=${2:?usage: cron-device.sh FRAMES OUTBOX INBOX}
inbox=${3:?usage: cron-device.sh FRAMES OUTBOX INBOX}
export CDCCA_DEVICE=${CDCCA_DEVICE:-device}
state=$CDCCA_DEVICE/.seen.json
log=$CDCCA_DEVICE/log.jsonl
work=$CDCCA_DEVICE/.outgoing.tokens.zst
answers=$CDCCA_DEVICE/.answers.jsonl

exec 9>"$CDCCA_DEVICE/.cron.lock"
flock --nonblock 9 || exit 0 # the previous run is still at work

cdcca inspect "$CDCCA_DEVICE" --json --quiet >/dev/null # a damaged device is no fault of the updates

for update in "$inbox"/*.codebook "$inbox"/*.cdcca; do
  [ -e "$update" ] || continue
  code=0
  cdcca apply "$CDCCA_DEVICE" "$update" --quiet ${NOTIFY:+--notify "$NOTIFY"} --json >>"$log" ||
    code=$?
  case $code in
    0 | 79) rm -- "$update" ;;                  # applied, or older than what is here
    78) ;;                                      # an earlier one is still to come: keep it
    69 | 73 | 129 | 130 | 143) exit "$code" ;;  # no memory, disk full, stopped: not the file's fault
    81) exit "$code" ;;                         # the runtime refused it, and the device went back
    *)
      mkdir -p "$inbox/refused"                 # damaged or hostile: to be sent again
      mv -- "$update" "$inbox/refused/"
      ;;
  esac
done

send() { # what was sampled, unless it is an empty stream
  if cdcca inspect "$work" --json --quiet | grep -q '"shards": *[1-9]'; then
    mv -- "$work" "$outbox/$(date -u +%Y%m%dT%H%M%SZ).tokens.zst"
  else
    rm -- "$work"
  fi
}

sample() {
  local words=()
  if [ -n "${SERVER:-}" ]; then
    cdcca infer "$frames" --server "$SERVER" --quiet -o "$answers" || return
    words=(--predictions "$answers" --payload frame)
  fi
  cdcca sample "$frames" "${words[@]}" --state "$state" --quiet -o "$work" --json >>"$log"
}

[ ! -e "$work" ] || send # the previous run was stopped before it could
code=0
sample || code=$?
if [ "$code" = 65 ] && [ -e "$state" ] && ! cdcca inspect "$state" --json >/dev/null 2>&1; then
  mv -- "$state" "$state.refused" # damaged: every frame is new again
  code=0
  sample || code=$?
fi
[ "$code" = 0 ] || exit "$code"
send
