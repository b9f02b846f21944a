#!/usr/bin/env bash
# A run as a JobSet on a GKE cluster with TPUs, by xpk.
#
#   launch/xpk.sh [--dry-run] COMMAND NAME [CONFIG KEY=VALUE ...]
#
#   image   build this checkout into IMAGE and push it (launch/Dockerfile)
#   start   looptool run --config CONFIG KEY=VALUE ... on all hosts of the slice; needs run_dir=gs://...
#   list    what runs and what waits
#   delete  end the run
#
# NAME is the workload's. The environment: CLUSTER, TYPE (v5litepod-64, v6e-8, v5p-16), IMAGE, and ZONE and PROJECT where
# gcloud's own are not meant; RESTARTS (default 100): a pod whose machine was taken away starts again and goes on where
# the run stood. --dry-run prints the commands and runs none.
#
#   CLUSTER=pods TYPE=v5p-16 IMAGE=us-docker.pkg.dev/me/looptool launch/xpk.sh image run
#   CLUSTER=pods TYPE=v5p-16 IMAGE=us-docker.pkg.dev/me/looptool launch/xpk.sh start run paper_8b run_dir=gs://bucket/run
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)

fail() { echo "xpk.sh: $*" >&2; exit 2; }

dry_run=
if [[ ${1:-} == --dry-run ]]; then dry_run=1; shift; fi
if [[ $# -eq 0 || $1 == --help ]]; then sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p;}' "$0"; exit; fi
command=$1 name=${2:-}
[[ -n $name ]] || fail "no NAME is given; launch/xpk.sh --help shows how"
shift 2
: "${CLUSTER:?xpk.sh: CLUSTER is not set; xpk cluster list shows clusters}"
cluster=(--cluster "$CLUSTER" ${ZONE:+--zone "$ZONE"} ${PROJECT:+--project "$PROJECT"})

say_and_run() {
  { printf '+'; printf ' %q' "$@"; echo; } >&2
  [[ -n $dry_run ]] || "$@"
}

image() {
  say_and_run docker build --file "$here/launch/Dockerfile" --tag "${IMAGE:?xpk.sh: IMAGE is not set}" "$here"
  say_and_run docker push "$IMAGE"
}

start() {
  local config=${1:-} arguments
  [[ -n $config ]] || fail "start: no CONFIG is given, such as paper_8b"
  [[ " $* " == *" run_dir=gs://"* ]] || fail "start: run_dir=gs://bucket/... is missing; all hosts have to see it"
  printf -v arguments ' %q' "${@:2}"
  say_and_run xpk workload create --workload "$name" "${cluster[@]}" --tpu-type "${TYPE:?xpk.sh: TYPE is not set}" \
    --docker-image "${IMAGE:?xpk.sh: IMAGE is not set}" --max-restarts "${RESTARTS:-100}" \
    --command "looptool run --config $(printf '%q' "$config")$arguments"
}

case $command in
  image) image ;;
  start) start "$@" ;;
  list) say_and_run xpk workload list "${cluster[@]}" ;;
  delete) say_and_run xpk workload delete --workload "$name" "${cluster[@]}" ;;
  *) fail "$command: no such command; there are image, start, list, delete" ;;
esac
