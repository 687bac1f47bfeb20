#!/bin/sh
# Runs a command in this place of the cluster.
set -eu
pid=$(cat "@DIRECTORY@/pid")
if [ ! "/proc/$pid/ns/net" -ef "/run/netns/@NAME@" ]; then
    echo "@NAME@ does not run" >&2
    exit 1
fi
for group in @GROUPS@; do
    echo 0 > "$group/cgroup.procs"
done
exec nsenter --target "$pid" --mount --uts --ipc --net --pid --cgroup -- "$@"
