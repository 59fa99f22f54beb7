#!/usr/bin/env bash
# The pipe with the cloud on another machine: run on the device. Only coded frames go up, only the
# update comes down; ssh carries both, and its exit code is the far stage's.
#
#   usage: ssh.sh FRAMES HOST
#
# DEVICE is the device's folder here, MIRROR the cloud's copy of it there (made from the same
# checkpoint with `cdcca init`), TEACHER the checkpoint there. SSH holds the command, with options.
# The mirror takes the update last: should the device fail, both are still where they were, and
# update.cdcca is kept here.
set -euo pipefail
frames=${1:?usage: ssh.sh FRAMES HOST}
host=${2:?usage: ssh.sh FRAMES HOST}
device=${DEVICE:-device}
mirror=${MIRROR:-mirror}
teacher=${TEACHER:-shipped:teacher}
read -r -a ssh <<<"${SSH:-ssh}"

cdcca sample "$frames" -m "$device" \
  | "${ssh[@]}" "$host" \
    "cdcca distill --teacher '$teacher' --student '$mirror' | cdcca compress --base '$mirror'" \
    >update.cdcca

cdcca apply "$device" update.cdcca
"${ssh[@]}" "$host" "cdcca apply '$mirror'" <update.cdcca
