#!/usr/bin/env bash
# Algorithm 1 in plain shell: what `cdcca loop` does, as commands that can be changed one by one.
#
#   usage: loop.sh FRAMES ROUNDS
set -euo pipefail
frames=${1:?usage: loop.sh FRAMES ROUNDS}
rounds=${2:?usage: loop.sh FRAMES ROUNDS}
checkpoint=${CHECKPOINT:-shipped:student}
teacher=${TEACHER:-shipped:teacher}

for folder in device mirror; do
  [ -e "$folder" ] || cdcca init "$folder" --checkpoint "$checkpoint"
done

resume=()
for round in $(seq "$rounds"); do
  mkdir -p "round-$round"
  cd "round-$round"
  cdcca infer "$frames" -m ../device -o predictions.jsonl
  cdcca sample "$frames" -m ../device --predictions predictions.jsonl -o uplink.tokens
  cdcca distill uplink.tokens --teacher "$teacher" --student ../mirror "${resume[@]}" \
    -o adaptation.safetensors
  cdcca compress adaptation.safetensors --base ../mirror -o update.cdcca
  cdcca apply ../mirror update.cdcca
  cdcca apply ../device update.cdcca
  resume=(--resume "$PWD/adaptation.safetensors") # what coding rounded off, the next round sends
  cd ..
done
