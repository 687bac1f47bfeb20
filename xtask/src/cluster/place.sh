# One place of a cluster: a node, the hub or the client. Runs as the first process of its own PID, mount, UTS, IPC,
# network and cgroup namespaces, and stays there to reap what others leave. Says "ready" when all is in place.
#
# HOST_NAME  its name        DIRECTORY  its files on the disk        NODE  1 for a node, else 0
set -eu

# In the machine's /proc, still: the number by which this machine knows this process.
read -r pid _ < /proc/self/stat
hostname "$HOST_NAME"

# What mounts show of cgroups follows the namespace that they are made in: the place's own directories are the roots.
hierarchies=$(awk '$3 == "cgroup" || $3 == "cgroup2" { print $2, $3, $4 }' /proc/mounts)
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t bpf bpf /sys/fs/bpf
if [ "$(echo "$hierarchies" | wc -l)" -gt 1 ]; then
    mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
fi
echo "$hierarchies" | while read -r path type options; do
    mkdir -p "$path"
    if [ "$type" = cgroup ]; then
        options=$(echo "$options" | tr , '\n' | grep -vxE 'rw|ro|relatime|nosuid|nodev|noexec|xattr|clone_children|release_agent=.*' | paste -sd,)
        mount -t cgroup -o "$options" cgroup "$path"
    else
        mount -t cgroup2 cgroup2 "$path"
    fi
done

# Configuration and state of programs are the place's own. Little goes to memory; what may grow goes to the disk.
mkdir -p "$DIRECTORY/containerd" "$DIRECTORY/kubelet" "$DIRECTORY/culvert" "$DIRECTORY/log"
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/netns /run/files /run/layers
mount --bind "$DIRECTORY" /run/files
for directory in etc opt var; do
    mkdir -p "/run/layers/$directory/upper" "/run/layers/$directory/work"
    mount -t overlay -o "lowerdir=/$directory,upperdir=/run/layers/$directory/upper,workdir=/run/layers/$directory/work" overlay "/$directory"
done
mkdir -p "$DIRECTORY"
mount --bind /run/files "$DIRECTORY"
# What outlives a reboot of the node.
for directory in containerd kubelet culvert; do
    mkdir -p "/var/lib/$directory"
    mount --bind "$DIRECTORY/$directory" "/var/lib/$directory"
done
mount --bind "$DIRECTORY/log" /var/log
if [ -d "$DIRECTORY/root" ]; then
    cp -a "$DIRECTORY/root/." /
fi
# Pods may share mounts with the node.
mount --make-rshared /

setting() {
    [ ! -e "/proc/sys/net/$1" ] || echo "$2" > "/proc/sys/net/$1"
}
setting ipv4/ip_forward 1
setting ipv4/conf/all/rp_filter 0
setting ipv4/conf/default/rp_filter 0
setting ipv6/conf/all/forwarding 1
setting ipv6/conf/default/accept_dad 0
# kube-proxy's netfilter modes must see replies between pods of one bridge; the hub's bridge is only a cable.
setting bridge/bridge-nf-call-iptables "$NODE"
setting bridge/bridge-nf-call-ip6tables "$NODE"

# As on a node with a firewall, connections are tracked whatever makes Services work.
if [ "$NODE" = 1 ]; then
    nft -f - <<'RULES'
table inet node {
    chain input { type filter hook input priority 0; ct state established,related accept; }
    chain forward { type filter hook forward priority 0; ct state established,related accept; }
    chain output { type filter hook output priority 0; ct state established,related accept; }
}
RULES
fi

echo "$pid" > "$DIRECTORY/pid"
echo ready
exec tini -s -- sleep infinity > /dev/null
