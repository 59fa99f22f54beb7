#!/usr/bin/env bash
# A real pair: InstructBLIP-Vicuna 13B teaches 7B; both share the EVA ViT-g tower.
#
#   usage: instructblip.sh ANNOTATIONS IMAGES        (A-OKVQA json, folder of COCO images)
#
# The cloud needs a GPU with about 60 GB for both in bfloat16, the device about 8 GB with its
# language model in NF4. The checkpoints come from the hub at the first run. The paper cuts the
# student's Q-Former to six layers (`init --qformer-layers 6`); one that is cut needs many frames
# before it answers well again. It sends norms, biases and query tokens in NF4 (`compress --codec nf4
# --select norm,bias,query`);
# here LoRA goes too, in as few bytes as cost 1 % of the held-out loss.
set -euo pipefail
annotations=${1:?usage: instructblip.sh ANNOTATIONS IMAGES}
images=${2:?usage: instructblip.sh ANNOTATIONS IMAGES}
teacher=${TEACHER:-Salesforce/instructblip-vicuna-13b}
student=${STUDENT:-Salesforce/instructblip-vicuna-7b}
on=(--compute "${COMPUTE:-cuda}" --dtype "${DTYPE:-bfloat16}")

for folder in device mirror; do
  cdcca init "$folder" --checkpoint "$student" --quantize nf4
done

# How tokens are coded: made once for a tower and teacher, from frames like the device's.
cdcca calibrate "$annotations" --images "$images" --student mirror --teacher "$teacher" "${on[@]}" \
  -o tokens.codebook
cdcca apply mirror tokens.codebook
cdcca apply device tokens.codebook

cdcca infer "$annotations" --images "$images" -m device "${on[@]}" --batch-size 16 -o before.jsonl
cdcca sample "$annotations" --images "$images" -m device "${on[@]}" \
  --predictions before.jsonl --top 20% -o uplink.tokens
cdcca distill uplink.tokens --teacher "$teacher" --student mirror "${on[@]}" \
  --batch-size 8 --work distill-work -o adaptation.safetensors
cdcca compress adaptation.safetensors --base mirror "${on[@]}" -o update.cdcca
cdcca apply device update.cdcca
cdcca apply mirror update.cdcca
cdcca infer "$annotations" --images "$images" -m device "${on[@]}" --batch-size 16 -o after.jsonl
cdcca eval after.jsonl --references "$annotations" --against before.jsonl
