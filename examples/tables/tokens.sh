#!/usr/bin/env bash
# Table 4: which tokens are kept, and how many, in one round. Variables: see common.sh.
#
#   usage: tokens.sh [RULE...]    rules of `cdcca sample --by`
. "$(dirname "$0")/common.sh"
[ $# -gt 0 ] || set -- random norm variance
for seed in "${seeds[@]}"; do
  start "$seed"
  for rule in "$@"; do
    for share in 25% 50% 75%; do
      slot
      chain "tokens/$rule-$share" "$seed" 1 "$top" "$share" "$rule" --method akd &
    done
  done
done
finish
report tokens --rules "$@"
