#!/usr/bin/env bash
# A device that runs llama-server: install an update, export it, restart the server, check its answers.
#
#   usage: llama-server.sh DEVICE BASE.gguf MMPROJ.gguf SERVED [UPDATE]
#
# SERVED becomes a folder with the files of the server; beside it are SERVED.pid and SERVED.log. If
# the server does not start, or does not act as the device was trained, the device goes back to the
# overlay before, and so does the server. Without UPDATE the server is started with what the device
# holds. LLAMA_SERVER is the program, LLAMA_PORT where it listens (8080 on this machine alone).
#
# The check compares with answers that cdcca computes, so it needs torch and the checkpoint here.
# Where they are not, make the answers beside the mirror, and put them into SERVED.probes/:
#   cdcca export mirror/ --to probe -o probe/ && cp probe/probe.json SERVED.probes/SEQUENCE.json
# A sequence that has none is served without the check.
#
# With a service manager, the start and the end of the server are one line: systemctl restart.
set -euo pipefail
usage='usage: llama-server.sh DEVICE BASE.gguf MMPROJ.gguf SERVED [UPDATE]'
device=${1:?$usage} base=${2:?$usage} mmproj=${3:?$usage} served=${4:?$usage} update=${5:-}
server=${LLAMA_SERVER:-llama-server}
port=${LLAMA_PORT:-8080}

stop() { # the server of before, and wait until it has let go of its port
  local pid
  pid=$(cat "$served.pid" 2>/dev/null) || return 0
  for try in $(seq 100); do
    # After a reboot the number may be another process's, which has no such word in its command.
    grep -qszx -e --port "/proc/$pid/cmdline" || break
    [ "$try" != 1 ] || kill "$pid" 2>/dev/null || true
    [ "$try" != 100 ] || kill -KILL "$pid" 2>/dev/null || true
    sleep 0.1
  done
  rm -f "$served.pid"
}

start() { # only files that differ from the base are in the folder
  local words=(-m "$base" --mmproj "$mmproj" --host 127.0.0.1 --port "$port")
  [ ! -e "$served/model.gguf" ] || words[1]=$served/model.gguf
  [ ! -e "$served/mmproj.gguf" ] || words[3]=$served/mmproj.gguf
  [ ! -e "$served/adapter.gguf" ] || words+=(--lora "$served/adapter.gguf")
  setsid "$server" "${words[@]}" >"$served.log" 2>&1 </dev/null & # not ended with this script
  echo $! >"$served.pid"
}

reload() { # what `apply --notify` runs: after an update, and again after going back
  local sequence probe words
  sequence=$(sed -n 's/.*"current":{[^}]*"sequence":\([0-9]*\).*/\1/p' "$device/device.json")
  probe=$served.probes/$sequence.json
  [ -e "$probe" ] || probe=auto
  words=(cdcca export "$device" --base "$base" --mmproj "$mmproj" --probe "$probe" -o "$served")
  "${words[@]}" --quiet
  stop
  start
  if grep -q '"probe":null' "$served/export.json"; then
    echo "llama-server.sh: there is no probe: the server was not checked" >&2
  else
    "${words[@]}" --check "http://127.0.0.1:$port" # waits for the server, writes nothing again
  fi
}

if [ "${LLAMA_RELOAD:-}" = 1 ] || [ -z "$update" ]; then
  reload
else
  printf -v command '%q ' bash "$0" "$device" "$base" "$mmproj" "$served"
  cdcca apply "$device" "$update" --notify "LLAMA_RELOAD=1 $command"
fi
