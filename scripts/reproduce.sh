# shellcheck shell=bash
# What the scripts share. A failed sweep (1), or one that is left to another process (3), is passed on as the exit code,
# after the rest is done; one that was interrupted (75) or refused (2) ends the script at once.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PATH=$root/.venv/bin:$PATH
code=0
train=(broadopt-run) show=(broadopt-table)
if ! command -v broadopt-run >/dev/null; then # not installed, as on a machine without network: this checkout's own
  train=(python3 -m broadopt.run) show=(python3 -m broadopt.table)
  export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
fi

sweep() { # broadopt-run's arguments
  local ended=0
  "${train[@]}" -m "$@" || ended=$?
  case $ended in 2 | 75) exit "$ended" ;; esac
  keep "$ended"
}

keep() { # the exit code of a sweep that others follow: what is left to another process (3) hides no failure
  case $1 in 0) ;; 3) [ "$code" != 0 ] || code=3 ;; *) code=$1 ;; esac
}

table() { # its name, then broadopt-run's arguments
  local argument results=results
  for argument in "${@:2}"; do
    case $argument in
      results_dir=*) results=${argument#results_dir=} ;;
      plan=true) exit "$code" ;;
    esac
  done
  "${show[@]}" "$1" --results "$results"
  exit "$code"
}
