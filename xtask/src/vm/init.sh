#!/culvert/busybox sh
# First program of the virtual machine: mounts the host's files, read-only, under a layer of memory, and goes there.
set -e
busybox=/culvert/busybox
trap '$busybox poweroff -f' EXIT

$busybox mount -t proc proc /proc
$busybox mount -t sysfs sys /sys
$busybox mount -t devtmpfs dev /dev
for module in $($busybox cat /modules/order); do
	$busybox insmod "/modules/$module"
done
$busybox mount -t virtiofs -o ro host /host
$busybox mount -t tmpfs -o size=75% memory /memory
$busybox mkdir /memory/upper /memory/work
$busybox mount -t overlay -o lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work overlay /root
$busybox mount -t tmpfs run /root/run
$busybox mkdir /root/run/culvert-vm
$busybox cp /culvert/* /root/run/culvert-vm/
for directory in proc sys dev; do
	$busybox mount --move /$directory /root/$directory
done
exec $busybox switch_root /root /run/culvert-vm/guest.sh
