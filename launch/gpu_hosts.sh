#!/usr/bin/env bash
# A run on several hosts with GPUs over ssh: no scheduler, JAX's own processes, one for each host.
#
#   launch/gpu_hosts.sh [--dry-run] COMMAND "HOST HOST ..." [CONFIG KEY=VALUE ...]
#
#   install  build this checkout and install it on all hosts
#   start    looptool run --config CONFIG KEY=VALUE ... on all hosts, in the background; run_dir is one that all see
#   logs     follow what the first host prints
#   stop     SIGTERM to the run: it commits what is done; start with the same settings continues
#
# The first host is where the others meet, on PORT (default 8476). --dry-run prints the commands and runs none.
#
#   launch/gpu_hosts.sh start "gpu-0 gpu-1" quickstart run_dir=/shared/run mesh.fsdp=16
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)

fail() { echo "gpu_hosts.sh: $*" >&2; exit 2; }

dry_run=
if [[ ${1:-} == --dry-run ]]; then dry_run=1; shift; fi
if [[ $# -eq 0 || $1 == --help ]]; then sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p;}' "$0"; exit; fi
command=$1
read -ra hosts <<< "${2:-}"
[[ ${#hosts[@]} -gt 0 ]] || fail 'no hosts are given, such as "gpu-0 gpu-1"'
shift 2

say_and_run() {
  { printf '+'; printf ' %q' "$@"; echo; } >&2
  [[ -n $dry_run ]] || "$@"
}

install() {
  local wheels host
  wheels=$(mktemp -d)
  say_and_run python3 -m pip wheel --quiet --no-deps --wheel-dir "$wheels" "$here"
  for host in "${hosts[@]}"; do
    say_and_run ssh "$host" 'rm -rf looptool-wheel'
    say_and_run scp -qr "$wheels" "$host:looptool-wheel"
    # shellcheck disable=SC2016  # the host expands it
    say_and_run ssh "$host" 'python3 -m venv looptool-venv && looptool-venv/bin/pip install --quiet "$(ls looptool-wheel/*.whl)[cuda]"'
  done
  rm -rf "$wheels"
}

start() {
  local config=${1:-} arguments i run
  [[ -n $config ]] || fail "start: no CONFIG is given, such as quickstart"
  [[ " $* " == *" run_dir="* ]] || fail "start: run_dir=... is missing; all hosts have to see it"
  printf -v arguments ' %q' "${@:2}"
  for i in "${!hosts[@]}"; do
    run="looptool-venv/bin/looptool run --config $(printf '%q' "$config") --coordinator ${hosts[0]#*@}:${PORT:-8476}"
    run+=" --processes ${#hosts[@]} --process $i$arguments"
    say_and_run ssh "${hosts[i]}" "setsid nohup $run > looptool.log 2>&1 < /dev/null & echo \$! > looptool.pid"
  done
}

stop() {
  local host
  for host in "${hosts[@]}"; do say_and_run ssh "$host" "kill \"\$(cat looptool.pid)\""; done
}

case $command in
  install | stop) "$command" ;;
  start) start "$@" ;;
  logs) say_and_run ssh "${hosts[0]}" 'tail -n 100 -F looptool.log' ;;
  *) fail "$command: no such command; there are install, start, logs, stop" ;;
esac
