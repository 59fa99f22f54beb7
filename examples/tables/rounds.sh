#!/usr/bin/env bash
# The figure: five rounds of some methods, MC and DA, as OUT/rounds.png (needs matplotlib). It goes
# on with the chains of methods.sh where they are there. Variables: see common.sh.
#
#   usage: rounds.sh [METHOD...]
ROUNDS=${ROUNDS:-5}
. "$(dirname "$0")/common.sh"
[ $# -gt 0 ] || set -- tent pseudo-label akd
methods "$@"
report rounds --rounds "$rounds" --methods "$@"
