#!/usr/bin/env bash
# Table 5: how long the files of one round take on a link, measured: TCP between two network
# namespaces that `tc` shapes. Markdown on stdout.
#
#   usage: link.sh [FOLDER]                             (table-5)
#
# Needs root and iproute2; without them it says why and measures nothing. PAIR, FRAMES and IMAGES
# name another pair and other frames than the shipped ones, as in common.sh. Files that are in
# FOLDER already are sent again, not made again: remove it for new ones. TIMES transfers of each
# file (10), none begun after WITHIN seconds (30). LINKS: gigabit, the paper's, and phone. PYTHON
# is one that has cdcca.
#
# Where the kernel has netem, it is the whole link. Where not, tbf holds the rate, and the way takes
# its time in a third namespace between the two (delay_line.py). NETEM=no does so anyway.
set -euo pipefail
work=${1:-table-5}
checkpoint=${PAIR:+$PAIR/student} teacher=${PAIR:+$PAIR/teacher}
checkpoint=${checkpoint:-shipped:student} teacher=${teacher:-shipped:teacher}
frames=${FRAMES:-}
[ ! -d "$frames/stream" ] || frames=$frames/stream
images=()
[ -z "${IMAGES:-}" ] || images=(--images "$IMAGES")
python=${PYTHON:-python3}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$work"

# ---------------------------------------------------------------- the link

namespace=cdcca-$$-$RANDOM

not_measured() { # REASON
  echo "link.sh: not measured: $1" >&2
  printf '## Table 5: the link\n\nNot measured: %s\n' "$1"
  exit 0
}

try() { # COMMAND...: what only root with a willing kernel can do
  local said
  said=$("$@" 2>&1) || not_measured "\`$*\` was refused: ${said%%$'\n'*}"
}

choose() { # LINK
  case $1 in # a burst holds one of the largest pieces that the kernel hands down whole
    gigabit) bits_per_second=1000000000 one_way_seconds=0.0005 piece=30000 burst=32000 ;;
    phone) bits_per_second=20000000 one_way_seconds=0.025 piece=1514 burst=3200 ;;
    *) echo "link.sh: LINKS: gigabit and phone are known, '$1' is not" >&2 && exit 2 ;;
  esac
}

lay() { # LINK: two namespaces, joined
  choose "$1"
  local way=${one_way_seconds}s rate=${bits_per_second}bit shape
  try ip netns add "$namespace-device"
  try ip netns add "$namespace-cloud"
  if [ "${NETEM:-yes}" != no ] \
    && tc -n "$namespace-device" qdisc add dev lo root netem delay 1ms 2>/dev/null; then
    shaped=netem
    shape=(netem delay "$way" rate "$rate" limit 20000)
    try ip link add eth0 netns "$namespace-device" type veth \
      peer name eth0 netns "$namespace-cloud"
  else
    shaped="tbf (burst $burst bytes) and delay_line.py"
    shape=(tbf rate "$rate" burst "$burst" latency 200ms)
    try ip netns add "$namespace-way"
    for side in device cloud; do
      try ip link add eth0 netns "$namespace-$side" type veth \
        peer name "$side" netns "$namespace-way"
      try ip -n "$namespace-way" link set "$side" up
    done
  fi
  for side in device cloud; do
    try tc -n "$namespace-$side" qdisc add dev eth0 root "${shape[@]}"
    try ip -n "$namespace-$side" link set eth0 gso_max_size "$piece" up
    # Each transfer is a first one: nothing learnt from the one before.
    try ip netns exec "$namespace-$side" sh -c 'echo 1 >/proc/sys/net/ipv4/tcp_no_metrics_save'
  done
  try ip -n "$namespace-device" address add 192.0.2.1/30 dev eth0
  try ip -n "$namespace-cloud" address add 192.0.2.2/30 dev eth0
}

start() { # the receivers, and the delay where netem has not got it; they end with the namespaces
  if [ "$shaped" != netem ]; then
    in_background way "$here/delay_line.py" "$one_way_seconds" device cloud
  fi
  in_background device "$here/transfer.py" receive
  in_background cloud "$here/transfer.py" receive
}

in_background() { # NAMESPACE SCRIPT...
  (ip netns exec "$namespace-$1" "$python" "${@:2}" >/dev/null &)
}

lift() { # the link, and all that runs on it
  for part in device way cloud; do
    ip netns pids "$namespace-$part" 2>/dev/null | xargs -r kill 2>/dev/null || true
  done
  for part in device way cloud; do
    ip netns delete "$namespace-$part" 2>/dev/null || true
  done
}

command -v ip >/dev/null || not_measured "there is no \`ip\` here: install iproute2"
command -v tc >/dev/null || not_measured "there is no \`tc\` here: install iproute2"
read -r -a links <<<"${LINKS:-gigabit phone}"
trap lift EXIT
for link in "${links[@]}"; do # before a minute goes into files that could not be sent
  lay "$link"
  lift
done

# ---------------------------------------------------------------- the files

if [ -z "$frames" ]; then
  frames=$work/frames/stream
  [ -e "$work/frames" ] || cdcca demo --export "$work/frames"
fi
up=$work/up down=$work/down

if [ ! -e "$work/made" ]; then
  rm -rf -- "$work/five" "$work/device" "$work/mirror"
  "$python" "$here/link_files.py" "$frames" "$work" "${images[@]}" --checkpoint "$checkpoint"
  cdcca init "$work/device" --checkpoint "$checkpoint"
  cp -R -- "$work/device" "$work/mirror" # what the same init would make
  for form in tokens pictures half; do
    case $form in
      tokens) payload=(--payload tokens) ;;
      pictures) payload=(--payload frame --quality 50) ;;
      half) payload=(--payload tokens --codec int8 --keep 50%) ;; # as version 0.3
    esac
    payload+=(--set repeats=true)
    cdcca sample "$work/five" -m "$work/device" --top 100% "${payload[@]}" -o "$up/five.$form"
    cdcca sample "$frames" "${images[@]}" -m "$work/device" "${payload[@]}" -o "$up/stream.$form"
  done
  cdcca distill "$up/stream.tokens" --teacher "$teacher" --student "$work/mirror" \
    -o "$work/adaptation.safetensors"
  for codec in nf4 paper; do
    as=(--codec nf4)
    [ $codec = nf4 ] || as+=(--select norm,bias,query)
    cdcca compress "$work/adaptation.safetensors" --base "$work/mirror" --no-measure "${as[@]}" \
      -o "$down/update.$codec"
  done
  cdcca compress "$work/adaptation.safetensors" --base "$work/mirror" -o "$down/update.usq"
  cdcca apply "$work/device" "$down/update.usq"
  cp -- "$work"/device/overlay/1-*.safetensors "$down/overlay.fp32"
  for name in five stream; do
    cdcca inspect "$up/$name.tokens" --json >"$work/$name.json"
  done
  touch "$work/made"
fi

# ---------------------------------------------------------------- the transfers

rm -rf -- "$work/transfers"
for link in "${links[@]}"; do
  results=$work/transfers/$link
  mkdir -p "$results"
  lay "$link"
  start
  read -r load_before _ </proc/loadavg
  for file in "$up"/* "$down"/*; do
    case $file in
      "$up"/*) way=up from=device to=192.0.2.2 ;;
      *) way=down from=cloud to=192.0.2.1 ;;
    esac
    echo "link.sh: $link, $way: $(basename "$file")" >&2
    ip netns exec "$namespace-$from" "$python" "$here/transfer.py" send "$file" "$to" \
      --times "${TIMES:-10}" --within "${WITHIN:-30}" >"$results/$way-$(basename "$file").json"
  done
  read -r load_after _ </proc/loadavg
  lift
  printf '{"name": "%s", "bits_per_second": %s, "one_way_seconds": %s, "shaped": "%s",
"load_before": %s, "load_after": %s}\n' "$link" "$bits_per_second" "$one_way_seconds" "$shaped" \
    "$load_before" "$load_after" >"$results/link.json"
done
"$python" "$here/link_table.py" "$work"
