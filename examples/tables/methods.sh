#!/usr/bin/env bash
# Table 1: methods by rounds, MC and DA. Variables: see common.sh.
#
#   usage: methods.sh [ROW...]
. "$(dirname "$0")/common.sh"
[ $# -gt 0 ] || set -- "${rows[@]}"
methods "$@"
report methods --rounds "$rounds" --methods "$@"
