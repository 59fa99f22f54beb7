#!/usr/bin/env bash
# The whole way in one pipe: device -> uplink -> cloud -> downlink -> device, on one machine.
#
#   usage: pipe.sh FRAMES
#
# Makes the folders device/ and mirror/ here if they are not there. TEACHER and CHECKPOINT name
# other models than the shipped pair; both folders must start from the same checkpoint and seed.
set -euo pipefail
frames=${1:?usage: pipe.sh FRAMES}
checkpoint=${CHECKPOINT:-shipped:student}
teacher=${TEACHER:-shipped:teacher}

for folder in device mirror; do
  [ -e "$folder" ] || cdcca init "$folder" --checkpoint "$checkpoint"
done

cdcca sample "$frames" -m device \
  | cdcca distill --teacher "$teacher" --student mirror \
  | cdcca compress --base mirror \
  | tee update.cdcca \
  | cdcca apply device

# The mirror is the cloud's copy of the device: it takes the same update and must reach the
# same digest, which `apply` checks.
cdcca apply mirror update.cdcca
