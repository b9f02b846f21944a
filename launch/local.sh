#!/usr/bin/env bash
# A run in N processes on this machine's CPU, to try what several hosts do.
#
#   launch/local.sh [--dry-run] N CONFIG [KEY=VALUE ...]
#
# DEVICES says how many devices each process has (default 1). What processes 1 and up print goes into the folder LOGS
# (default: a new one). --dry-run prints the commands and runs none.
#
#   launch/local.sh 2 micro run_dir=/tmp/two
#   DEVICES=4 launch/local.sh 2 micro run_dir=/tmp/eight mesh.fsdp=8
set -euo pipefail

fail() { echo "local.sh: $*" >&2; exit 2; }

dry_run=
if [[ ${1:-} == --dry-run ]]; then dry_run=1; shift; fi
if [[ $# -eq 0 || $1 == --help ]]; then sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p;}' "$0"; exit; fi
count=$1 config=${2:-}
[[ $count =~ ^[1-9][0-9]*$ ]] || fail "$count: expected the number of processes"
[[ -n $config ]] || fail "no CONFIG is given, such as micro"
shift 2
port=${PORT:-$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}
export JAX_PLATFORMS=cpu XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=${DEVICES:-1}"

processes=()
for ((i = count - 1; i >= 0; i--)); do
  process=(looptool run --config "$config" --coordinator "127.0.0.1:$port" --processes "$count" --process "$i" "$@")
  { printf '+'; printf ' %q' "${process[@]}"; echo; } >&2
  [[ -z $dry_run ]] || continue
  if [[ $i -gt 0 ]]; then
    logs=${LOGS:-$(mktemp -d)} LOGS=$logs
    "${process[@]}" > "$logs/process-$i.log" 2>&1 &
  else
    "${process[@]}" &
  fi
  processes+=($!)
done
trap 'kill "${processes[@]}" 2> /dev/null || true' INT TERM

status=0
for process in "${processes[@]}"; do wait "$process" || status=$?; done
[[ $status -eq 0 || $count -eq 1 ]] || echo "local.sh: a process ended with status $status; the logs are in $logs" >&2
exit "$status"
