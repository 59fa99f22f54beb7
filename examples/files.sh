#!/usr/bin/env bash
# The pipe of pipe.sh through files, stage by stage: what a CI or a Makefile would run.
# The update is the same as the pipe's, byte for byte.
#
#   usage: files.sh FRAMES
set -euo pipefail
frames=${1:?usage: files.sh FRAMES}
checkpoint=${CHECKPOINT:-shipped:student}
teacher=${TEACHER:-shipped:teacher}

for folder in device mirror; do
  [ -e "$folder" ] || cdcca init "$folder" --checkpoint "$checkpoint"
done

cdcca infer "$frames" -m device -o predictions.jsonl
cdcca sample "$frames" -m device --predictions predictions.jsonl -o uplink.tokens
cdcca distill uplink.tokens --teacher "$teacher" --student mirror -o adaptation.safetensors
cdcca compress adaptation.safetensors --base mirror -o update.cdcca
cdcca apply device update.cdcca --dry-run
cdcca apply device update.cdcca
cdcca apply mirror update.cdcca
cdcca inspect update.cdcca
