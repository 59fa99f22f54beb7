#!/bin/sh
# Updates by way of an OCI registry, with oras (https://oras.land).
#
#   in the cloud:  oras.sh push REGISTRY/updates:device-7 update.cdcca
#   on the device: oras.sh pull REGISTRY/updates:device-7 /var/lib/cdcca/device
#
# The registry checks digests on the way. Who may update a device is decided by cdcca's signatures
# alone (cdcca sign): a registry that others write to is no harm. A pull that fails exits with 69:
# try again later. The exit code of the rest is that of cdcca apply; what is refused is named on
# stderr, and comes again at the next pull until a newer one is pushed.
set -eu
here=$(dirname "$0")
usage='usage: oras.sh push REFERENCE FILE | pull REFERENCE DEVICE'
todo=${1:?$usage} reference=${2:?$usage} name=${3:?$usage}
media=application/vnd.cdcca.update

case $todo in
  push)
    cd "$(dirname "$name")" # oras keeps the path as it is given
    oras push --artifact-type "$media" "$reference" "$(basename "$name"):$media"
    ;;
  pull)
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    oras pull --output "$scratch" "$reference" >&2 || exit 69
    for file in "$scratch"/*; do
      [ -f "$file" ] || { echo "oras.sh: $reference: no file in it" >&2; exit 65; }
      code=0
      verdict=$("$here/take-update.sh" "$name" "$file") || code=$?
      echo "$verdict: $(basename "$file")" >&2
      case $verdict in 'done' | obsolete) ;; *) exit "$code" ;; esac
    done
    ;;
  *) echo "$usage" >&2 && exit 2 ;;
esac
