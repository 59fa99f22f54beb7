#!/usr/bin/env bash
# A real pair: InstructBLIP-Vicuna 13B teaches 7B; both share the EVA ViT-g tower.
#
#   usage: instructblip.sh ANNOTATIONS IMAGES        (A-OKVQA json, folder of COCO images)
#
# The cloud needs a GPU with about 60 GB for both in bfloat16 (or --quantize), the device about
# 8 GB with its language model in NF4. The checkpoints come from the hub at the first run.
# PREFIX=echo shows the commands without running them.
set -euo pipefail
annotations=${1:?usage: instructblip.sh ANNOTATIONS IMAGES}
images=${2:?usage: instructblip.sh ANNOTATIONS IMAGES}
teacher=${TEACHER:-Salesforce/instructblip-vicuna-13b}
student=${STUDENT:-Salesforce/instructblip-vicuna-7b}
read -r -a run <<<"${PREFIX:-} cdcca"

# The paper's student: six of twelve Q-Former layers. The cut one needs training before it answers
# well, so give it many frames, or leave --qformer-layers out.
"${run[@]}" init device --checkpoint "$student" --quantize nf4
"${run[@]}" init mirror --checkpoint "$student" --quantize nf4

"${run[@]}" infer "$annotations" --images "$images" -m device --compute cuda --dtype bfloat16 \
  --batch-size 16 -o before.jsonl
"${run[@]}" sample "$annotations" --images "$images" -m device --compute cuda --dtype bfloat16 \
  --predictions before.jsonl --top 20% --keep 50% -o uplink.tokens
"${run[@]}" distill uplink.tokens --teacher "$teacher" --student mirror --compute cuda \
  --dtype bfloat16 --batch-size 8 --work distill-work -o adaptation.safetensors
"${run[@]}" compress adaptation.safetensors --base mirror --budget 800KB -o update.cdcca
"${run[@]}" apply device update.cdcca
"${run[@]}" apply mirror update.cdcca
"${run[@]}" infer "$annotations" --images "$images" -m device --compute cuda --dtype bfloat16 \
  --batch-size 16 -o after.jsonl
"${run[@]}" eval after.jsonl --references "$annotations" --against before.jsonl
