# shellcheck shell=bash
# What the two scripts share. A failed sweep is passed on as the exit code, after the rest is done; one that was
# interrupted (75) or refused (2) ends the script at once.

PATH=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv/bin:$PATH
code=0

sweep() { # broadopt-run's arguments
  local ended=0
  broadopt-run -m "$@" || ended=$?
  case $ended in 2 | 75) exit "$ended" ;; esac
  [ "$ended" = 0 ] || code=$ended
}

table() { # its name, then broadopt-run's arguments
  local argument results=results
  for argument in "${@:2}"; do
    case $argument in
      results_dir=*) results=${argument#results_dir=} ;;
      plan=true) exit "$code" ;;
    esac
  done
  broadopt-table "$1" --results "$results"
  exit "$code"
}
