# Second program of the virtual machine, on the host's files: mounts what a system has, runs the command, reports its
# exit code on the second serial line, and switches the machine off. Above it stand the host's PATH and paths.
trap '/run/culvert-vm/busybox poweroff -f' EXIT

mkdir -p /dev/pts /dev/shm "/lib/modules/$(uname -r)" /run/lock /run/netns
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount --bind "$MODULES" "/lib/modules/$(uname -r)"
ip link set lo up
hostname culvert-vm
# A serial line has no size of its own.
stty rows 50 cols 160
cd "$WORKSPACE"

echo "kernel $(uname -r)"
sh /run/culvert-vm/command.sh
code=$?
echo "exit code $code"
echo "$code" > /dev/ttyS1
