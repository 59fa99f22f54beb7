#!/usr/bin/env bash
# How little has to go up: one round on ever fewer of the most uncertain questions and tokens, each with
# as many steps as the whole stream has, against the whole stream (the paper: 4.71 % of the bytes for
# VQA, 20.6 % for captions). Variables: see common.sh.
#
#   usage: uplink.sh [ASKS/TOKENS...]    shares in percent; 100/100 is the whole stream
. "$(dirname "$0")/common.sh"
prepare "$row"
[ $# -gt 0 ] || set -- 100/100 50/50 20/50 10/50 10/25 5/25
for seed in "${seeds[@]}"; do
  start "$seed"
  for pair in "$@"; do
    part=$(python3 -c "import sys; print(round(int(sys.argv[2]) / float(sys.argv[1]) * 100))" \
      "${pair%/*}" "$epochs")
    slot
    epochs=$part chain "uplink/$row/${pair/\//-}" "$seed" 1 "${pair%/*}%" "${pair#*/}%" variance "$row" &
  done
done
finish
report uplink --rules "$@"
