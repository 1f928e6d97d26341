#!/usr/bin/env bash
# The first rows on a GPU, within a time limit: the most wanted first, one run after the other, each with its checkpoints.
# The limit, Ctrl-C, TERM and HUP end what is on its way with the state saved; given again, all goes on.
#
#   scripts/first_rows.sh HOURS [KEY=VALUE ...]     what is given goes to broadopt-run: results_dir=, data_dir=, device=
#   scripts/first_rows.sh 12 plan=true              what it would train, and cost
#   RESERVE=0 scripts/first_rows.sh 0.05 dataset=digits budget=0.2 device=cpu 'hydra.launcher.gpus=[0]'     a rehearsal on a CPU
#
# PER_GPU=1 in the environment: runs at a time on the card (recorded VGG-16 gains nothing by sharing it); RESERVE=120:
# seconds ahead of the limit at which runs are told to save. Exit codes: 0 all finished, 1 a run failed, 2 bad input, 75
# ended by the limit (give it again).
set -uo pipefail
# shellcheck source=scripts/reproduce.sh
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh"

[[ ${1:-} =~ ^[0-9]*\.?[0-9]+$ ]] || { echo "first_rows.sh: ${1:-nothing} given: expected the hours that it may take, first_rows.sh 12" >&2; exit 2; }
limit=$(awk -v hours="$1" -v reserve="${RESERVE:-120}" 'BEGIN { print int(hours * 3600 - reserve) }')
((limit > 0)) || { echo "first_rows.sh: $1 hours: expected more than RESERVE=${RESERVE:-120} seconds" >&2; exit 2; }
end=$((SECONDS + limit))
shift

rows() { # broadopt-run's arguments of a sweep
  local left=$((end - SECONDS)) ended=0
  [ -z "$stopped" ] || exit 75
  ((left > 0)) || { echo "first_rows.sh: the time is up: give it again to go on" >&2; exit 75; }
  trained "$left" hydra/launcher=local "hydra.launcher.per_gpu=${PER_GPU:-1}" "$@" || ended=$?
  case $ended in 2 | 75) exit "$ended" ;; esac
  keep "$ended"
}

for seed in 1 2,3; do
  rows experiment=table1/vgg16_cifar10 method=swa,fge,sgd "seed=$seed" "$@"
done
rows experiment=table3/resnet20,table3/vgg19_bn method=sgd,sam,asam seed=1 "$@"
rows experiment=table1/preresnet164_cifar10,table1/preresnet164_cifar100 method=swa,fge,sgd seed=1 "$@"
exit "$code"
