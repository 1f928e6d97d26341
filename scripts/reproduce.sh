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

# timeout has a process group of its own, which a terminal's signals do not reach, and bash deals with a signal to itself
# only between commands: so what trains is in the background, where `wait` ends at once, and the signal is passed on.
child='' stopped='' woken=''
# shellcheck disable=SC2317,SC2329 # called by the trap
stop() {
  stopped=yes woken=yes
  [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
}
trap stop INT TERM HUP

trained() { # seconds (0: no limit), then broadopt-run's arguments; TERM, timeout's too, has the runs save their states
  local ended
  [ -z "$stopped" ] || return 75
  timeout --signal=TERM "$1" "${train[@]}" -m "${@:2}" &
  child=$!
  [ -z "$stopped" ] || kill -TERM "$child" 2>/dev/null # the signal came just before
  while :; do
    woken='' ended=0
    wait "$child" || ended=$?
    [ -n "$woken" ] || break # else it was a signal that ended the waiting: the exit code is still to come
  done
  child=''
  case $ended in 124 | 143) ended=75 ;; esac # the limit; TERM before the sweep could deal with it
  return "$ended"
}

sweep() { # broadopt-run's arguments
  local ended=0
  trained 0 "$@" || ended=$?
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
