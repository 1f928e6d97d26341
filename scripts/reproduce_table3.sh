#!/usr/bin/env bash
# Table 3 of the ASAM paper: trains what is not finished yet, then prints the table. It can be run again at any time.
#
#   scripts/reproduce_table3.sh                                                     one run after the other
#   scripts/reproduce_table3.sh hydra/launcher=local hydra.launcher.n_jobs=8        on this machine's GPUs
#   scripts/reproduce_table3.sh hydra/launcher=slurm hydra.launcher.partition=gpu   on a cluster
#
# What is given goes to broadopt-run; SEEDS=1,2,3,4,5 in the environment is the number of runs that the table asks for.
set -uo pipefail
# shellcheck source=scripts/reproduce.sh
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh"

sweep 'experiment=glob(table3/*)' method=sgd,sam,asam "seed=${SEEDS:-1,2,3,4,5}" "$@"
table table3 "$@"
