#!/bin/sh
# Fetches updates into a device's inbox, from a folder or by https.
#
#   usage: fetch-updates.sh FROM INBOX
#   FROM   a folder (a mount, a USB stick), or an address (https://...) whose file `index` names the
#          updates, one a line, in order
#
# A file is in the inbox only when it is whole. What was fetched is remembered in INBOX/.fetched, so
# that what was refused is not fetched again under the same name.
set -eu
from=${1:?usage: fetch-updates.sh FROM INBOX} inbox=${2:?usage: fetch-updates.sh FROM INBOX}
case $from in *://*) from=${from%/}/ ;; esac
seen=$inbox/.fetched
touch "$seen"

names() {
  case $from in
    *://*) curl --silent --show-error --fail --max-time 60 "${from}index" ;;
    *) cd "$from" && ls ;;
  esac
}

get() { # NAME TARGET
  case $from in
    *://*) curl --silent --show-error --fail --max-time 600 --output "$2" "$from$1" ;;
    *) cp -- "$from/$1" "$2" ;;
  esac
}

list=$(names) || exit 69
while IFS= read -r name; do
  case $name in
    .* | */* | -*) continue ;; # a name, not a way out of the inbox
    *.cdcca | *.codebook) ;;
    *) continue ;;
  esac
  ! grep -qxF -- "$name" "$seen" || continue
  get "$name" "$inbox/.$name.part" || exit 69
  sync "$inbox/.$name.part"
  mv -- "$inbox/.$name.part" "$inbox/$name"
  sync "$inbox" # before it counts as fetched
  echo "$name" >>"$seen"
done <<END
$list
END
