#!/usr/bin/env bash
# Table 2: captions by domain, BLEU-4 and CIDEr, after the last round. It takes the chains of
# methods.sh where they are there. Variables: see common.sh.
#
#   usage: captions.sh [ROW...]
. "$(dirname "$0")/common.sh"
[ $# -gt 0 ] || set -- "${rows[@]}"
methods "$@"
report captions --rounds "$rounds" --methods "$@"
