#!/usr/bin/env bash
# Table 4: which tokens are kept, and how many, in one round. Variables: see common.sh.
#
#   usage: tokens.sh [RULE...]    rules of `cdcca sample --by`
PAYLOAD=${PAYLOAD:---payload tokens}
. "$(dirname "$0")/common.sh"
prepare "$row"
[ $# -gt 0 ] || set -- random norm variance
for seed in "${seeds[@]}"; do
  start "$seed"
  for rule in "$@"; do
    for kept in 25% 50% 75%; do
      slot
      chain "tokens/$row/$rule-$kept" "$seed" 1 "$top" "$kept" "$rule" "$row" &
    done
  done
done
finish
report tokens --rules "$@"
