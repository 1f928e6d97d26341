#!/usr/bin/env bash
# Table 1 of the SWA paper: trains what is not finished yet, then prints the table. It can be run again at any time.
#
#   scripts/reproduce_table1.sh                                                     one run after the other
#   scripts/reproduce_table1.sh hydra/launcher=local hydra.launcher.n_jobs=8        on this machine's GPUs
#   scripts/reproduce_table1.sh hydra/launcher=slurm hydra.launcher.partition=gpu   on a cluster
#
# What is given goes to broadopt-run; SEEDS=1,2,3 in the environment are the paper's three runs of each cell.
set -uo pipefail
# shellcheck source=scripts/reproduce.sh
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh"

with_fge=table1/vgg16_cifar10,table1/vgg16_cifar100,table1/preresnet164_cifar10,table1/preresnet164_cifar100
with_fge+=,table1/wrn28_10_cifar10,table1/wrn28_10_cifar100 # the rows that the paper has a value of FGE for

sweep 'experiment=glob(table1/*)' method=sgd,swa "seed=${SEEDS:-1,2,3}" "$@"
sweep "experiment=$with_fge" method=fge "seed=${SEEDS:-1,2,3}" "$@"
table table1 "$@"
