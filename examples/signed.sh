#!/usr/bin/env bash
# Updates that only the holder of a key can send, and how that key is replaced.
#
#   usage: signed.sh FRAMES
#
# Makes fleet.key, device/ and mirror/ here, sends one signed update, then changes the key. A
# private key belongs where `compress` runs, nowhere else; the device gets the public one.
set -euo pipefail
frames=${1:?usage: signed.sh FRAMES}
checkpoint=${CHECKPOINT:-shipped:student}
teacher=${TEACHER:-shipped:teacher}

cdcca keygen fleet.key
for folder in device mirror; do
  cdcca init "$folder" --checkpoint "$checkpoint" --trust fleet.key.pub
done

cdcca sample "$frames" -m device \
  | cdcca distill --teacher "$teacher" --student mirror \
  | cdcca compress --base mirror --sign fleet.key --expires 30d -o update.cdcca
cdcca apply device update.cdcca
cdcca apply mirror update.cdcca

# The next key: a list signed with the old key and with the new one. Keep it: devices take lists in
# order, and a device that is made later starts with `init --trust 2.trust`.
cdcca keygen next.key
cdcca trust --after mirror --key next.key.pub --sign fleet.key --sign next.key -o 2.trust
cdcca apply device 2.trust
cdcca apply mirror 2.trust
cdcca inspect device
