#!/bin/sh
# Three rounds for one group of devices: UPDATES/1.cdcca to 3.cdcca, and the mirror after them.
#
#   usage: rounds.sh GROUP FRAMES FOLDER
#
# FRAMES has stream/; the group has every third frame of it. In the group `south` the second round is
# a bad one: its learning rate was mistyped. The mirror is rolled back, so the third starts where the
# second did, and fits devices that took the bad update and devices that refused it.
set -eu
group=${1:?} frames=${2:?} folder=${3:?}
mkdir -p "$folder/updates"
[ -e "$folder/mirror" ] || cdcca init "$folder/mirror" --groups norm,bias,query --quiet
cp -r "$folder/mirror" "$folder/factory" # what every device of the group starts from
for round in 1 2 3; do
  "${PYTHON:-python3}" "$(dirname "$0")/simulate.py" part \
    "$group" "$round" "$frames/stream" "$folder/$round"
  cdcca sample "$folder/$round" -m "$folder/mirror" --top 100% --quiet -o "$folder/$round.tokens"
  lr=0.004
  [ "$group$round" != south2 ] || lr=0.4
  cdcca distill "$folder/$round.tokens" --teacher shipped:teacher --student "$folder/mirror" \
    --epochs 6 --lr $lr --holdout 0 --threads 1 --quiet -o "$folder/$round.safetensors"
  cdcca compress "$folder/$round.safetensors" --base "$folder/mirror" --no-measure --quiet \
    -o "$folder/updates/$round.cdcca"
  cdcca apply "$folder/mirror" "$folder/updates/$round.cdcca" --quiet
  [ "$group$round" != south2 ] || cdcca apply "$folder/mirror" --rollback --quiet
done
