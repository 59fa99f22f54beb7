#!/usr/bin/env bash
# Table 3: what each stage adds, in one round: pseudo-labels (PL) on all that a seed has of the stream;
# what ROW learns beside them (akd: the paper's alignment); the most uncertain questions alone
# (UTS-1); their most uncertain tokens alone (UTS-2; KEEP, half of them). The last two take as many
# steps on fewer questions as the first two on all. Variables: see common.sh.
PAYLOAD=${PAYLOAD:---payload tokens}
. "$(dirname "$0")/common.sh"
whole=$epochs few=${KEEP:-50%}
prepare "$row"
part=$(python3 -c "import sys; share = float(sys.argv[1].rstrip('%')) / 100; \
print(round(int(sys.argv[2]) / share))" "$top" "$epochs")
for seed in "${seeds[@]}"; do
  start "$seed"
  for variant in "pl 100% 100% $whole pseudo-label" "pl-$row 100% 100% $whole $row" \
    "pl-$row-uts1 $top 100% $part $row" "pl-$row-uts2 $top $few $part $row"; do
    read -r name questions tokens epochs method <<<"$variant"
    slot
    chain "ablation/$name" "$seed" 1 "$questions" "$tokens" variance "$method" &
  done
done
finish
report ablation
