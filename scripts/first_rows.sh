#!/usr/bin/env bash
# The first rows on a GPU, within a time limit: the most wanted first, one run after the other, each with its checkpoints.
# The limit, Ctrl-C, TERM and HUP end what is on its way with the state saved; given again, all goes on.
#
#   scripts/first_rows.sh HOURS [KEY=VALUE ...]     what is given goes to broadopt-run: results_dir=, data_dir=, device=
#   scripts/first_rows.sh 12 plan=true              what it would train, and cost
#   RESERVE=0 scripts/first_rows.sh 0.05 dataset=digits budget=0.2 device=cpu 'hydra.launcher.gpus=[0]'     a rehearsal on a CPU
#
# PER_GPU=1 in the environment: runs at a time on the card (recorded VGG-16 gains nothing by sharing it); RESERVE=120:
# seconds ahead of the limit at which runs are told to save. Exit codes: 0 all finished, 1 a run failed, 2 bad input, 75 ended by the limit (give it again).
set -uo pipefail
# shellcheck source=scripts/reproduce.sh
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh"

[[ ${1:-} =~ ^[0-9]*\.?[0-9]+$ ]] || { echo "first_rows.sh: ${1:-nothing} given: expected the hours that it may take, first_rows.sh 12" >&2; exit 2; }
limit=$(awk -v hours="$1" -v reserve="${RESERVE:-120}" 'BEGIN { print int(hours * 3600 - reserve) }')
((limit > 0)) || { echo "first_rows.sh: $1 hours: expected more than RESERVE=${RESERVE:-120} seconds" >&2; exit 2; }
end=$((SECONDS + limit))
shift

# timeout has a process group of its own, which a terminal's signals do not reach, and bash deals with a signal to itself
# only between commands: so the sweep is in the background, where `wait` ends at once, and the signal is passed on.
child='' stopped='' woken=''
# shellcheck disable=SC2317,SC2329 # called by the trap
stop() {
  stopped=yes woken=yes
  [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
}
trap stop INT TERM HUP

rows() { # broadopt-run's arguments of a sweep; TERM, timeout's too, has the runs save their states
  local left=$((end - SECONDS)) ended
  [ -z "$stopped" ] || exit 75
  ((left > 0)) || { echo "first_rows.sh: the time is up: give it again to go on" >&2; exit 75; }
  timeout --signal=TERM "$left" "${train[@]}" -m hydra/launcher=local "hydra.launcher.per_gpu=${PER_GPU:-1}" "$@" &
  child=$!
  [ -z "$stopped" ] || kill -TERM "$child" 2>/dev/null # the signal came just before
  while :; do
    woken='' ended=0
    wait "$child" || ended=$?
    [ -n "$woken" ] || break # else it was a signal that ended the waiting: the exit code is still to come
  done
  child=''
  case $ended in 2 | 75) exit "$ended" ;; 124 | 143) exit 75 ;; esac # 143: before the sweep could deal with TERM
  keep "$ended"
}

for seed in 1 2,3; do
  rows experiment=table1/vgg16_cifar10 method=swa,fge,sgd "seed=$seed" "$@"
done
rows experiment=table3/resnet20,table3/vgg19_bn method=sgd,sam,asam seed=1 "$@"
rows experiment=table1/preresnet164_cifar10,table1/preresnet164_cifar100 method=swa,fge,sgd seed=1 "$@"
exit "$code"
