#!/usr/bin/env bash
# What cron runs on a device: send what is new and uncertain, apply what has come back.
#
#   usage: cron-device.sh FRAMES OUTBOX INBOX
#   crontab: */15 * * * *  cron-device.sh /var/frames /var/outbox /var/inbox
#
# Says nothing when all is well, so that cron mails only trouble. One run at a time (flock).
# `--state` remembers which frames were seen. How the boxes travel is another tool's work (rsync,
# scp, a USB stick): OUTBOX holds token shards, INBOX the updates, named so that they sort in order.
set -euo pipefail
frames=${1:?usage: cron-device.sh FRAMES OUTBOX INBOX}
outbox=${2:?usage: cron-device.sh FRAMES OUTBOX INBOX}
inbox=${3:?usage: cron-device.sh FRAMES OUTBOX INBOX}
export CDCCA_DEVICE=${CDCCA_DEVICE:-device}

exec 9>"$CDCCA_DEVICE/.cron.lock"
flock --nonblock 9 || exit 0 # the run before is still at work

for update in "$inbox"/*.cdcca; do
  [ -e "$update" ] || continue
  code=0
  cdcca apply "$CDCCA_DEVICE" "$update" --quiet || code=$?
  case $code in
    0 | 79) rm -- "$update" ;;                        # applied, or older than what is here
    65 | 76) mv -- "$update" "$update.refused" ;;     # damaged in transit: to be sent again
    77 | 78) ;;                                       # an earlier one is still to come: keep it
    *) exit "$code" ;;                                # disk full and the like: cron tells
  esac
done

cdcca sample "$frames" --state "$CDCCA_DEVICE/.seen.json" --quiet \
  -o "$outbox/$(date -u +%Y%m%dT%H%M%SZ).tokens.zst"
