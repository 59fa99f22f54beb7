#!/usr/bin/env bash
# The pipe with the cloud on another machine: run on the device. Only tokens go up, only the
# update comes down; ssh carries both, and its exit code is the far stage's.
#
#   usage: ssh.sh FRAMES HOST
#
# DEVICE is the device's folder here, MIRROR the cloud's copy of it there (made from the same
# checkpoint with `cdcca init`), TEACHER the checkpoint there. SSH holds the command, with options.
set -euo pipefail
frames=${1:?usage: ssh.sh FRAMES HOST}
host=${2:?usage: ssh.sh FRAMES HOST}
device=${DEVICE:-device}
mirror=${MIRROR:-mirror}
teacher=${TEACHER:-shipped:teacher}
read -r -a ssh <<<"${SSH:-ssh}"

remote="set -eu
  adaptation=\$(mktemp) update=\$(mktemp)
  trap 'rm -f \"\$adaptation\" \"\$update\"' EXIT
  cdcca distill --teacher '$teacher' --student '$mirror' -o \"\$adaptation\" --force
  cdcca compress \"\$adaptation\" --base '$mirror' -o \"\$update\" --force
  cat \"\$update\"
  cdcca apply '$mirror' \"\$update\""

cdcca sample "$frames" -m "$device" \
  | "${ssh[@]}" "$host" "$remote" \
  | cdcca apply "$device"
