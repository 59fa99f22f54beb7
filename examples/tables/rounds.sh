#!/usr/bin/env bash
# The figure: five rounds of some rows, MC and DA, as OUT/rounds.png (needs matplotlib). It goes
# on with the chains of methods.sh where they are there. Variables: see common.sh.
#
#   usage: rounds.sh [ROW...]
ROUNDS=${ROUNDS:-5}
. "$(dirname "$0")/common.sh"
[ $# -gt 0 ] || set -- tent pseudo-label akd kd
methods "$@"
report rounds --rounds "$rounds" --methods "$@"
