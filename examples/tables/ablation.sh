#!/usr/bin/env bash
# Table 3: what each stage adds, in one round: pseudo-labels (PL) on the whole stream; the alignment
# (AKD) beside them; the most uncertain questions alone (UTS-1); their most uncertain tokens alone (UTS-2).
# The last two take as many steps on fewer questions as the first two on all. Variables: see common.sh.
. "$(dirname "$0")/common.sh"
whole=$epochs
part=$(python3 -c "import sys; share = float(sys.argv[1].rstrip('%')) / 100; \
print(round(int(sys.argv[2]) / share))" "$top" "$epochs")
for seed in "${seeds[@]}"; do
  start "$seed"
  for variant in "pl 100% 100% $whole pseudo-label" "pl-akd 100% 100% $whole akd" \
    "pl-akd-uts1 $top 100% $part akd" "pl-akd-uts2 $top $keep $part akd"; do
    read -r name questions tokens epochs method <<<"$variant"
    slot
    chain "ablation/$name" "$seed" 1 "$questions" "$tokens" variance --method "$method" &
  done
done
finish
report ablation
