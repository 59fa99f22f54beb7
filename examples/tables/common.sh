# shellcheck shell=bash
# What the tables share: where the models and frames are, and one chain of rounds. To be sourced.
#
#   PAIR     a folder with the checkpoints `student` and `teacher`   [the shipped pair]
#   FRAMES   a folder with `stream` (target domain, what is sent), `heldout` (never sent) and, if
#            wanted, `source` and `anchors`, as `cdcca demo --export` makes it; or an annotation
#            file, whose frames are both what is sent and what is scored, as in the paper
#            [the shipped frames]
#   IMAGES   where an annotation file's pictures are
#   OUT      everything that is made; what is there is not made again   [tables]
#   SHARE    the share of the stream that a seed has; each draws its own (selection.py)   [75%]
#   ANCHORS  frames of the source domain for the rows that take anchors   [FRAMES/anchors]
#   SEEDS ROUNDS JOBS TOP KEEP EPOCHS DISTILL   how; DISTILL are more options of distill
#   PAYLOAD  options of sample: what goes up of a frame   [sample's own: a picture or its tokens,
#            coded with the device's codebook; as the paper: --payload tokens --codec int8]
#   ROW      what is trained by in Tables 3 and 4 and in uplink.sh, a row of recipes.sh   [kd]
#   REFERENCE   the row that the others are compared with   [pseudo-label]
#   ERROR    relative error of the change that compress may make, the same for all   [0.1]
#   SCORED   what is scored at the end beside `heldout`: stream, source, both   [stream source]
#   COMPUTE DTYPE   auto
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/recipes.sh"
out=${OUT:-tables}
mkdir -p "$out"
out=$(cd "$out" && pwd)
read -ra seeds <<<"${SEEDS:-0 1 2}"
rounds=${ROUNDS:-3} jobs=${JOBS:-1}
top=${TOP:-50%} keep=${KEEP:-100%} epochs=${EPOCHS:-3} error=${ERROR:-0.1}
student=${PAIR:+$PAIR/student} teacher=${PAIR:+$PAIR/teacher}
student=${student:-shipped:student} teacher=${teacher:-shipped:teacher}
scored=${SCORED:-stream source} share=${SHARE:-75%} row=${ROW:-kd} reference=${REFERENCE:-pseudo-label}
runtime=(--compute "${COMPUTE:-auto}" --dtype "${DTYPE:-auto}" --quiet)
read -ra more <<<"${DISTILL:-}"
read -ra payload <<<"${PAYLOAD:-}"
images=()
if [ -z "${FRAMES:-}" ]; then
  [ -d "$out/frames" ] || cdcca demo --export "$out/frames" --quiet
  FRAMES=$out/frames
fi
if [ -f "$FRAMES" ]; then
  stream=$FRAMES heldout='' source=''
  images=(${IMAGES:+--images "$IMAGES"}) pictures=${IMAGES:-$(dirname "$FRAMES")}
else
  pictures=$FRAMES/stream
  stream=$FRAMES/stream heldout=$FRAMES/heldout source=$FRAMES/source
  [ -e "$source" ] || source=''
fi
anchors=${ANCHORS:-$FRAMES/anchors}
rows=(tent cotta pkd cwd pseudo-label akd paper kd) # of Tables 1 and 2
[ ! -e "$anchors" ] || rows+=(kd+anchors)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# answers FRAMES DEVICE FILE: what a device says of frames, unless it is known already.
answers() {
  [ -z "$1" ] || [ -e "$3" ] \
    || cdcca infer "$1" "${images[@]}" -m "$2" -o "$3" --batch-size 64 "${runtime[@]}"
}

# once FILE COMMAND...: runs the command, whose output is FILE, unless it is there.
once() {
  local file=$1
  shift
  [ -e "$file" ] || "$@"
}

# chain NAME SEED ROUNDS TOP KEEP BY ROW: Algorithm 1, a command a line, in $out/seed-SEED/NAME.
# BY is the rule by which tokens are kept, ROW what recipes.sh calls the training.
chain() {
  local name=$1 seed=$2 rounds=$3 top=$4 keep=$5 by=$6 recipe=() round=0
  recipe_of "$7" "$out/anchors.tokens"
  local folder=$out/seed-$seed/$name
  mkdir -p "$folder"
  for side in device mirror; do
    [ -e "$folder/$side" ] || cdcca init "$folder/$side" --checkpoint "$student" --quiet
  done
  local resume=()
  while [ "$round" -lt "$rounds" ]; do
    round=$((round + 1))
    local now=$folder/round-$round
    mkdir -p "$now"
    if [ ! -e "$now/applied" ]; then
      if [ "$round" = 1 ]; then # no method has done anything yet: all of a seed share it
        mkdir -p "$out/seed-$seed/start"
        answers "$stream" "$folder/device" "$out/seed-$seed/start/stream.jsonl"
        cp "$out/seed-$seed/start/stream.jsonl" "$now/before.jsonl"
      else
        answers "$stream" "$folder/device" "$now/before.jsonl"
      fi
      once "$now/uplink.tokens" cdcca sample "$out/seed-$seed/selection.jsonl" \
        --images "$pictures" -m "$folder/device" \
        --predictions "$now/before.jsonl" --top "$top" --keep "$keep" --by "$by" \
        "${payload[@]}" --seed $((1000 * seed + round)) -o "$now/uplink.tokens" "${runtime[@]}"
      once "$now/adaptation.safetensors" cdcca distill "$now/uplink.tokens" --teacher "$teacher" \
        --student "$folder/mirror" "${resume[@]}" --seed $((1000 * seed + round)) \
        --labels "$out/teacher.labels" --epochs "$epochs" "${recipe[@]}" "${more[@]}" \
        --log "$now/steps.jsonl" -o "$now/adaptation.safetensors" "${runtime[@]}"
      once "$now/update.cdcca" cdcca compress "$now/adaptation.safetensors" \
        --base "$folder/mirror" --max-error "$error" --no-measure -o "$now/update.cdcca" --quiet
      cdcca apply "$folder/device" "$now/update.cdcca" --quiet
      cdcca apply "$folder/mirror" "$now/update.cdcca" --quiet
      touch "$now/applied"
    fi
    answers "$heldout" "$folder/device" "$now/heldout.jsonl"
    resume=(--resume "$now/adaptation.safetensors")
  done
  # A chain that has gone further already is at another round: its answers would not be of this one.
  [ ! -e "$folder/round-$((rounds + 1))/applied" ] || return 0
  [[ $scored != *stream* ]] || answers "$stream" "$folder/device" "$folder/round-$rounds/stream.jsonl"
  [[ $scored != *source* ]] || answers "$source" "$folder/device" "$folder/round-$rounds/source.jsonl"
}

# start SEED: the seed's part of the stream, and what the source model says of everything, which does
# not change from round to round.
start() {
  local folder=$out/seed-$1/start selection=$out/seed-$1/selection.jsonl
  mkdir -p "$folder"
  if [ ! -e "$selection" ]; then
    python3 "$here/selection.py" "$stream" "$share" "$1" "$pictures" >"$selection.part"
    mv "$selection.part" "$selection"
  fi
  [ -e "$folder/device" ] || cdcca init "$folder/device" --checkpoint "$student" --quiet
  answers "$stream" "$folder/device" "$folder/stream.jsonl"
  answers "$heldout" "$folder/device" "$folder/heldout.jsonl"
  answers "$source" "$folder/device" "$folder/source.jsonl"
}

# prepare ROW...: the source frames' tokens, for the rows that take anchors. They stay in the cloud.
prepare() {
  local recipe name
  for name in "$@"; do
    recipe_of "$name" "$out/anchors.tokens"
    [[ " ${recipe[*]} " == *" --anchors "* ]] || continue
    if [ ! -e "$anchors" ]; then
      echo "$name takes frames of the source domain: name them in ANCHORS" >&2
      return 2
    fi
    start "${seeds[0]}"
    once "$out/anchors.tokens" cdcca sample "$anchors" -m "$out/seed-${seeds[0]}/start/device" \
      --top 100% --payload tokens -o "$out/anchors.tokens" "${runtime[@]}"
  done
}

# methods ROW...: a chain of rounds for each row and seed, $JOBS at once.
methods() {
  prepare "$@"
  for seed in "${seeds[@]}"; do
    start "$seed"
    for name in "$@"; do
      slot
      chain "$name" "$seed" "$rounds" "$top" "$keep" variance "$name" &
    done
  done
  finish
}

# slot: waits until fewer than $JOBS chains run. finish: waits for all; fails if one has failed.
slot() {
  while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
}
finish() {
  while [ -n "$(jobs -p)" ]; do wait -n || { wait; return 1; }; done
}

report() {
  PYTHONWARNINGS=ignore python3 "$here/report.py" "$@" --out "$out" --frames "$FRAMES" \
    --reference "$reference" --row "$row" --seeds "${seeds[@]}"
}
