#!/usr/bin/env bash
# A Slurm cluster of one node on this machine, for broadopt's own tests: real daemons, real preemption, pretended GPUs.
#
#   scripts/slurm_for_tests.sh start FOLDER    then:  source FOLDER/environment
#   scripts/slurm_for_tests.sh stop FOLDER     ends what was started there, and nothing else
#
# Needs root on Debian or Ubuntu; installs slurm-wlm and munge where they are missing. Everything else stays in FOLDER.
# Two partitions: jobs of "urgent" drive those of "main" back into the queue, which are told by USR2 first.
set -euo pipefail

action=${1:?start or stop} home=$(realpath -m "${2:?a folder}")
daemons="munged slurmctld slurmd"
export SLURM_CONF=$home/slurm.conf

running() { # whether the daemon that was started here still lives: a number may have gone to another program since
  local number
  number=$(cat "$home/$1.pid" 2>/dev/null) && [ "$(cat "/proc/$number/comm" 2>/dev/null)" = "$1" ]
}

install_packages() {
  local program missing=
  for program in $daemons sbatch; do command -v "$program" > /dev/null || missing=yes; done
  [ -z "$missing" ] && return
  export DEBIAN_FRONTEND=noninteractive
  { apt-get -q update && apt-get -q install -y --no-install-recommends slurm-wlm munge; } > "$home/apt.log" 2>&1
}

write_config() {
  local node gpu
  node=$(hostname -s)
  for gpu in 0 1; do [ -e "$home/gpu$gpu" ] || mknod "$home/gpu$gpu" c 1 3; done # Slurm wants character devices
  echo "NodeName=$node Name=gpu File=$home/gpu[0-1]" > "$home/gres.conf"
  cat > "$SLURM_CONF" << END
ClusterName=tests
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=26817
SlurmdPort=26818
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$home/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$home/state
SlurmdSpoolDir=$home/spool
SlurmctldPidFile=$home/slurmctld.pid
SlurmdPidFile=$home/slurmd.pid
SlurmctldLogFile=$home/slurmctld.log
SlurmdLogFile=$home/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=2,sched_min_interval=200000,batch_sched_delay=0
ReturnToService=2
KillWait=5
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
GresTypes=gpu
NodeName=$node NodeAddr=127.0.0.1 CPUs=4 CoresPerSocket=4 RealMemory=$(awk '/MemTotal/ { print int($2 * 0.9 / 1024) }' /proc/meminfo) Gres=gpu:2
PartitionName=main Nodes=$node Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=15
PartitionName=urgent Nodes=$node PriorityTier=2 PreemptMode=OFF
END
}

start() {
  mkdir -p "$home" "$home/state" "$home/spool"
  chmod 755 "$home"
  install_packages
  write_config
  [ -s "$home/munge.key" ] || (umask 077 && head -c 1024 /dev/urandom > "$home/munge.key")
  running munged || munged --key-file="$home/munge.key" --socket="$home/munge.socket" --pid-file="$home/munged.pid" \
    --log-file="$home/munged.log" --seed-file="$home/munge.seed"
  running slurmctld || slurmctld
  running slurmd || slurmd
  echo "export SLURM_CONF=$SLURM_CONF" > "$home/environment"
  for _ in $(seq 100); do
    case $(sinfo --noheader --format=%T 2> /dev/null | sort -u) in idle | mixed | allocated) return ;; esac
    sleep 0.3
  done
  echo "the node does not come up; see $home/*.log" >&2
  exit 1
}

stop() {
  local daemon number
  if running slurmctld; then scancel --me 2> /dev/null || true; fi
  for _ in $(seq 40); do
    running slurmctld && [ -n "$(squeue --noheader 2> /dev/null)" ] || break
    sleep 0.5
  done
  for daemon in slurmd slurmctld munged; do
    running "$daemon" || continue
    number=$(cat "$home/$daemon.pid")
    kill "$number"
    for _ in $(seq 40); do kill -0 "$number" 2> /dev/null || break; sleep 0.25; done
  done
}

case $action in
  start) start ;;
  stop) stop ;;
  restart-controller) kill "$(cat "$home/slurmctld.pid")"; while running slurmctld; do sleep 0.1; done; slurmctld ;;
  *) echo "$0: $action: expected start, stop or restart-controller" >&2; exit 2 ;;
esac
