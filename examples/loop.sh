#!/usr/bin/env bash
# Algorithm 1 in plain shell: what `cdcca loop` does, as commands that can be changed one by one.
#
#   usage: [ANCHORS=FRAMES] loop.sh FRAMES ROUNDS
#
# ANCHORS: frames of the student's source domain, at which every round holds it to its first answers.
set -euo pipefail
frames=${1:?usage: loop.sh FRAMES ROUNDS}
rounds=${2:?usage: loop.sh FRAMES ROUNDS}
checkpoint=${CHECKPOINT:-shipped:student}
teacher=${TEACHER:-shipped:teacher}

for folder in device mirror; do
  [ -e "$folder" ] || cdcca init "$folder" --checkpoint "$checkpoint"
done

more=()
if [ -n "${ANCHORS:-}" ]; then
  [ -e anchors.tokens ] || cdcca sample "$ANCHORS" -m device --top 100% -o anchors.tokens
  more+=(--anchors anchors.tokens)
fi

resume=()
for round in $(seq "$rounds"); do
  here=round-$round
  mkdir -p "$here"
  cdcca infer "$frames" -m device -o "$here/predictions.jsonl"
  cdcca sample "$frames" -m device --predictions "$here/predictions.jsonl" -o "$here/uplink.tokens"
  cdcca distill "$here/uplink.tokens" --teacher "$teacher" --student mirror "${more[@]}" \
    "${resume[@]}" -o "$here/adaptation.safetensors"
  cdcca compress "$here/adaptation.safetensors" --base mirror -o "$here/update.cdcca"
  cdcca apply device "$here/update.cdcca"
  cdcca apply mirror "$here/update.cdcca"
  resume=(--resume "$here/adaptation.safetensors") # what coding rounded off, the next round sends
done
