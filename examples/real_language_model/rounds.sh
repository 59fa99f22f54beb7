#!/usr/bin/env bash
# Three rounds of the pipe on a pair of train.py, a stage a process, timed; then a table.
#
#   usage: rounds.sh MODELS WORLD
#
#   OUT      everything that is made; what is there is not made again   [rounds]
#   FRAMES   how many frames of stream and of heldout, half as many of source; 0 for all   [120]
#   TOP ROUNDS EPOCHS DTYPE THREADS   [50% 3 3 bfloat16 1]
#   PAYLOAD  what goes up: tokens or frame; round 1 also codes the other   [tokens]
#   ANCHORS  how many frames of train-source the student is held to; 0 for none   [0]
#   DISTILL  more options of distill, such as `--method pseudo-label`
set -euo pipefail
models=${1:?usage: rounds.sh MODELS WORLD} world=${2:?usage: rounds.sh MODELS WORLD}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${OUT:-rounds} frames=${FRAMES:-120} payload=${PAYLOAD:-tokens}
read -ra more <<<"${DISTILL:-}"
runtime=(--dtype "${DTYPE:-bfloat16}" --threads "${THREADS:-1}" --quiet)
export OMP_NUM_THREADS=${THREADS:-1}
mkdir -p "$out"

# stage NAME FILE COMMAND...: runs a command that makes FILE, unless it is there, and notes what it took.
stage() {
  local name=$1 file=$2
  shift 2
  [ -e "$file" ] || python3 "$here/timed.py" "$out/stages.jsonl" "$name" "$@"
}

# some NAME COUNT: the manifest of the first frames of a folder of the world.
some() {
  python3 "$here/first.py" "$world/$1/frames.jsonl" "$2" >"$out/$1.jsonl"
}
some stream "$frames"
some heldout "$frames"
some source $((frames / 2))

for side in device mirror; do
  stage init "$out/$side" cdcca init "$out/$side" --checkpoint "$models/student" --quiet
done

# answers WHAT ROUND: what the device says of frames that are never sent.
answers() {
  stage "infer $1" "$out/$2/$1.jsonl" cdcca infer "$out/$1.jsonl" --images "$world/$1" \
    -m "$out/device" -o "$out/$2/$1.jsonl" "${runtime[@]}"
}
if [ "${ANCHORS:-0}" != 0 ]; then
  some train-source "$ANCHORS"
  stage "sample anchors" "$out/anchors.shards" cdcca sample "$out/train-source.jsonl" \
    --images "$world/train-source" -m "$out/device" --top 100% -o "$out/anchors.shards" "${runtime[@]}"
  more+=(--anchors "$out/anchors.shards")
fi

mkdir -p "$out/0"
answers heldout 0
answers source 0

for round in $(seq "${ROUNDS:-3}"); do
  now=$out/$round
  mkdir -p "$now"
  sample=(cdcca sample "$out/stream.jsonl" --images "$world/stream" -m "$out/device"
    --predictions "$now/stream.jsonl" --top "${TOP:-50%}" --seed "$round" "${runtime[@]}")
  if [ ! -e "$now/applied" ]; then
    answers stream "$round"
    kinds=("$payload")
    [ "$round" != 1 ] || kinds=(tokens frame)
    for kind in "${kinds[@]}"; do
      stage "sample $kind" "$now/$kind.shards" "${sample[@]}" --payload "$kind" -o "$now/$kind.shards"
    done
    stage distill "$now/adaptation.safetensors" cdcca distill "$now/$payload.shards" \
      --teacher "$models/teacher" --student "$out/mirror" --labels "$out/teacher.labels" \
      --epochs "${EPOCHS:-3}" --seed "$round" "${more[@]}" -o "$now/adaptation.safetensors" \
      "${runtime[@]}"
    stage compress "$now/update.cdcca" cdcca compress "$now/adaptation.safetensors" \
      --base "$out/mirror" -o "$now/update.cdcca" "${runtime[@]}"
    for side in device mirror; do
      stage apply "$now/applied" cdcca apply "$out/$side" "$now/update.cdcca" --quiet
    done
    touch "$now/applied"
  fi
  answers heldout "$round"
  answers source "$round"
done
python3 "$here/report.py" "$out"
