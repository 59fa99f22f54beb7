#!/usr/bin/env bash
# Algorithm 1 in plain shell: what `cdcca loop` does, as commands that can be changed one by one.
#
#   usage: [ANCHORS=FRAMES] [PROBE=FRAMES] loop.sh FRAMES ROUNDS
#
# ANCHORS: frames of the student's source domain, at which every round holds it to its first answers.
# PROBE: labelled frames, never sent: the device answers them before the first and after each round.
#
# Afterwards: cdcca report . --references probe=PROBE --references stream=FRAMES -o report.html
set -euo pipefail
frames=${1:?usage: loop.sh FRAMES ROUNDS}
rounds=${2:?usage: loop.sh FRAMES ROUNDS}
checkpoint=${CHECKPOINT:-shipped:student}
teacher=${TEACHER:-shipped:teacher}

for folder in device mirror; do
  [ -e "$folder" ] || cdcca init "$folder" --checkpoint "$checkpoint"
done

probe() { # the device's answers to the probe, into a folder
  mkdir -p "$1"
  [ -z "${PROBE:-}" ] || cdcca infer "$PROBE" -m device -o "$1/probe.jsonl"
}

more=()
if [ -n "${ANCHORS:-}" ]; then
  [ -e anchors.tokens ] || cdcca sample "$ANCHORS" -m device --top 100% -o anchors.tokens
  more+=(--anchors anchors.tokens)
fi

probe start
resume=()
for round in $(seq "$rounds"); do
  here=round-$round
  mkdir -p "$here"
  cdcca infer "$frames" -m device -o "$here/predictions.jsonl"
  cdcca sample "$frames" -m device --predictions "$here/predictions.jsonl" -o "$here/uplink.tokens"
  rm -f "$here/steps.jsonl" # a log is added to
  cdcca distill "$here/uplink.tokens" --teacher "$teacher" --student mirror "${more[@]}" \
    "${resume[@]}" --labels teacher.labels --log "$here/steps.jsonl" -o "$here/adaptation.safetensors"
  cdcca compress "$here/adaptation.safetensors" --base mirror -o "$here/update.cdcca"
  cdcca apply device "$here/update.cdcca" --json > "$here/apply.jsonl"
  cdcca apply mirror "$here/update.cdcca"
  probe "$here"
  resume=(--resume "$here/adaptation.safetensors") # what coding rounded off, the next round sends
done
