#!/bin/sh
# The command for `cdcca apply --notify`: gives the runtime the overlay that the device has now.
#
#   NOTIFY=/usr/lib/cdcca/reload.sh take-update.sh /var/lib/cdcca/device update.cdcca
#
# It is run with the new overlay; if it fails, the device goes back, and it is run again with the old
# one. So it only has to do one thing: export what the device holds, reload, and fail unless the
# runtime answers. It may be run twice for one overlay.
#
#   BASE, MMPROJ  the runtime's files that the export starts from (GGUF); no BASE: nothing is exported
#   EXPORT        the folder that the runtime reads; it is always wholly the old or the new export
#   RELOAD        how the runtime is told, such as: systemctl restart llama-server
#   HEALTH        an address that answers 200 once the runtime is up
#   CHECK         llama-server's address: its answers must be those of the device (export --check)
#   SECONDS_UP    how long it may take to come up (60)
set -eu
: "${CDCCA_DEVICE:?is set by cdcca apply --notify}"

[ -z "${CHECK:-}" ] || : "${BASE:?CHECK compares with an export}"
if [ -n "${BASE:-}" ]; then
  set -- export "$CDCCA_DEVICE" --to gguf --base "$BASE" -o "${EXPORT:?where the runtime reads}"
  [ -z "${MMPROJ:-}" ] || set -- "$@" --mmproj "$MMPROJ"
  cdcca "$@" --quiet
fi
[ -z "${RELOAD:-}" ] || sh -c "$RELOAD"

tries=${SECONDS_UP:-60}
until [ -z "${HEALTH:-}" ] || curl --silent --fail --max-time 5 --output /dev/null "$HEALTH"; do
  tries=$((tries - 1))
  [ "$tries" -gt 0 ] || { echo "reload.sh: $HEALTH does not answer" >&2; exit 1; }
  sleep 1
done
[ -z "${CHECK:-}" ] || cdcca "$@" --check "$CHECK" --quiet
