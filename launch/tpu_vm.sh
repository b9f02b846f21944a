#!/usr/bin/env bash
# A run on a TPU slice of Google Cloud, from this checkout: queued resources and gcloud, nothing else.
#
#   launch/tpu_vm.sh [--dry-run] COMMAND NAME [CONFIG KEY=VALUE ...]
#
#   create   ask for the slice and wait until it is there
#   install  build this checkout and install it on all hosts
#   start    looptool run --config CONFIG KEY=VALUE ... on all hosts, in the background; needs run_dir=gs://...
#   logs     follow what process 0 prints
#   resume   start again; a slice that was taken away is asked for anew first
#   delete   give the slice back
#   up       create, install, start
#
# NAME is the slice's. The environment says what it is: TYPE (v5litepod-64, v6e-8, v5p-16), ZONE, and where gcloud's own
# are not meant, PROJECT; RUNTIME (the image; default: the one for TYPE), SPOT=1 for a spot slice. --dry-run prints the
# commands and runs none.
#
#   TYPE=v5p-16 ZONE=us-east5-a SPOT=1 launch/tpu_vm.sh up pod paper_8b run_dir=gs://bucket/run \
#       policy.path=gs://bucket/Qwen3-8B judge_model.path=gs://bucket/Qwen3-32B
#   TYPE=v5p-16 ZONE=us-east5-a SPOT=1 launch/tpu_vm.sh resume pod paper_8b run_dir=gs://bucket/run ...
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)

fail() { echo "tpu_vm.sh: $*" >&2; exit 2; }

dry_run=
if [[ ${1:-} == --dry-run ]]; then dry_run=1; shift; fi
if [[ $# -eq 0 || $1 == --help ]]; then sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p;}' "$0"; exit; fi
command=$1 name=${2:-}
[[ -n $name ]] || fail "no NAME is given; launch/tpu_vm.sh --help shows how"
shift 2
: "${TYPE:?tpu_vm.sh: TYPE is not set; TYPE=v5litepod-64 names a slice}"
: "${ZONE:?tpu_vm.sh: ZONE is not set; gcloud compute tpus locations list shows zones}"
where=(--zone "$ZONE" ${PROJECT:+--project "$PROJECT"})

runtime() {
  case $TYPE in
    v5lite*) echo v2-alpha-tpuv5-lite ;;
    v5p*) echo v2-alpha-tpuv5 ;;
    v6e*) echo v2-alpha-tpuv6e ;;
    v4*) echo tpu-ubuntu2204-base ;;
    *) fail "TYPE=$TYPE: its image is not known here; set RUNTIME" ;;
  esac
}

say_and_run() {
  { printf '+'; printf ' %q' "$@"; echo; } >&2
  [[ -n $dry_run ]] || "$@"
}

on_hosts() { say_and_run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker "$1" --command "$2"; }

state() { gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format 'value(state.state)'; }

create() {
  local image=${RUNTIME:-} now failures=0
  [[ -n $image ]] || image=$(runtime)
  say_and_run gcloud compute tpus queued-resources create "$name" --node-id "$name" "${where[@]}" \
    --accelerator-type "$TYPE" --runtime-version "$image" ${SPOT:+--spot}
  [[ -z $dry_run ]] || return 0
  while true; do
    if now=$(state); then failures=0; elif ((++failures == 5)); then fail "gcloud does not know of $name"; fi
    case $now in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED) fail "$name is $now; launch/tpu_vm.sh delete $name, and ask again" ;;
    esac
    echo "tpu_vm.sh: $name is ${now:-unknown}, waiting" >&2
    sleep "${WAIT_SECONDS:-30}"
  done
}

install() {
  local wheels
  wheels=$(mktemp -d)
  say_and_run python3 -m pip wheel --quiet --no-deps --wheel-dir "$wheels" "$here"
  on_hosts all 'rm -rf looptool-wheel && mkdir looptool-wheel'
  say_and_run gcloud compute tpus tpu-vm scp --recurse "$wheels/." "$name:looptool-wheel" "${where[@]}" --worker all
  rm -rf "$wheels"
  # The images' own Python may be too old; uv brings one.
  # shellcheck disable=SC2016  # the hosts expand it
  on_hosts all 'python3 -m pip install --quiet --user uv && ~/.local/bin/uv venv --quiet --clear --python 3.11 looptool-venv &&
    ~/.local/bin/uv pip install --quiet --python looptool-venv/bin/python "$(ls looptool-wheel/*.whl)[tpu]"'
}

start() {
  local config=${1:-} arguments
  [[ -n $config ]] || fail "start: no CONFIG is given, such as paper_8b"
  [[ " $* " == *" run_dir=gs://"* ]] || fail "start: run_dir=gs://bucket/... is missing; all hosts and the next slice have to see it"
  printf -v arguments ' %q' "${@:2}"
  on_hosts all "setsid nohup looptool-venv/bin/looptool run --config $(printf '%q' "$config")$arguments > looptool.log 2>&1 < /dev/null &"
  echo "tpu_vm.sh: started; launch/tpu_vm.sh logs $name follows it" >&2
}

delete() { say_and_run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet; }

resume() {
  local now=ACTIVE
  [[ -n $dry_run ]] || now=$(state 2> /dev/null) || now=
  if [[ $now != ACTIVE ]]; then
    [[ -z $now ]] || delete
    create
    install
  fi
  start "$@"
}

case $command in
  create | install | delete) "$command" ;;
  start | resume) "$command" "$@" ;;
  logs) on_hosts 0 'tail -n 100 -F looptool.log' ;;
  up)
    create
    install
    start "$@"
    ;;
  *) fail "$command: no such command; there are create, install, start, logs, resume, delete, up" ;;
esac
