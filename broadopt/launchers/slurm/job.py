"""The script of a Slurm job, which carries out the lines of its commands.txt."""

import re
from typing import Any

SCRIPT = """#!/bin/bash
{options}
# Carries out its lines of commands.txt, {per_gpu} a task. Slurm sends {signal} ahead of the time limit, and of a
# preemption where the cluster has a GraceTime and SlurmctldParameters=preempt_send_user_signal: the runs save their
# states and end, and the job goes back into the queue. A run killed without it goes on from its checkpoint.
folder={folder}
task=$SLURM_ARRAY_TASK_ID
asked= again= worst=0
declare -A runs
trap 'asked=yes; kill -{forwarded} "${{!runs[@]}}" 2>/dev/null; echo "{signal}: {saving}"' {signal}
command_of() {{ sed -n "$(($1 + 1))p" "$folder/commands.txt"; }}
is_left() {{ [ -n "$(command_of "$1")" ] && [ ! -e "$folder/$1.exit" ]; }}
# No folder on this node, or a setup that ends the script: its runs have failed.
unstarted() {{
  code=$?
  for ((number = task * {per_gpu}; code <= 128 && number < (task + 1) * {per_gpu}; number++)); do
    if is_left "$number"; then {told}echo "$code" > "$folder/$number.exit"; fi
  done
  exit "$code"
}}
trap unstarted EXIT
trap 'exit 143' TERM # else bash runs the trap above with the code of an earlier command
cd {cwd} || exit 1
{setup}
trap - EXIT TERM
for ((number = task * {per_gpu}; number < (task + 1) * {per_gpu}; number++)); do
  if [ -n "$asked" ]; then again=yes; continue; fi
  if ! is_left "$number"; then continue; fi
  export BROADOPT_OUTPUT=$folder/$number.out
  {prefix}bash -c "exec $(command_of "$number")"{output} &
  runs[$!]=$number
done
for run in "${{!runs[@]}}"; do
  wait "$run"
  code=$?
  while kill -0 "$run" 2>/dev/null; do wait "$run"; code=$?; done
  if [ "$code" != 0 ]; then worst=$code; fi
  if [ -n "$asked" ] && [ "$code" != 0 ]; then again=yes; continue; fi
  # A start after another: the lost node may still hold the run's lock.
  if [ "$code" = 3 ] && [ "${{SLURM_RESTART_COUNT:-0}}" != 0 ]; then again=yes; continue; fi
  case $code in {crashes}) code=1;; esac # a crash, which would come again
  # Interrupted, or ended by a signal from outside: it goes on when the command is given again.
  if [ "$code" = 75 ] || {{ [ "$code" -gt 128 ] && [ "$code" -lt 193 ]; }}; then continue; fi
  echo "$code" > "$folder/${{runs[$run]}}.exit"
done
if [ -n "$again" ]; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$task" && exit 0
fi
exit "$worst"
"""

TOLD = """echo "the job ended ahead of its runs: see $folder/task-$task.out" >> "$folder/$number.out"; """
"""What a run that shares its task with others is told in its own file."""


def word(value: Any) -> str:
    """A value as sbatch reads it in a script, by rules of its own: a backslash escapes inside of quotes as well."""
    if re.fullmatch(r"[\w.,:/%@+=-]*", text := str(value), flags=re.ASCII):
        return text
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'
