//! The programs of a test cluster, and what each is built from.

/// A directory of `tests/cluster/` with a `go.mod` of its own, because version constraints of their dependencies clash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Module {
    /// Kubernetes, its tests and their runner.
    Kubernetes,
    /// containerd and the CNI plugins.
    Containerd,
    /// The cluster's DNS server.
    CoreDns,
    /// The overlay network.
    Flannel,
    /// flannel's CNI plugin.
    FlannelCni,
    /// Helm.
    Helm,
}

impl Module {
    /// Its directory below `tests/cluster/`.
    pub const fn directory(self) -> &'static str {
        match self {
            Self::Kubernetes => "kubernetes",
            Self::Containerd => "containerd",
            Self::CoreDns => "coredns",
            Self::Flannel => "flannel",
            Self::FlannelCni => "flannel-cni",
            Self::Helm => "helm",
        }
    }
}

/// A program that is built here. etcd and runc are Debian's, and in the search path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Program {
    /// `kube-apiserver`
    KubeApiserver,
    /// `kube-controller-manager`
    KubeControllerManager,
    /// `kube-scheduler`
    KubeScheduler,
    /// `kubelet`
    Kubelet,
    /// `kube-proxy`
    KubeProxy,
    /// `kubectl`
    Kubectl,
    /// `containerd`
    Containerd,
    /// `containerd-shim-runc-v2`, which containerd looks for beside itself and in the search path.
    ContainerdShim,
    /// `ctr`
    Ctr,
    /// The plugins bridge, ptp, loopback, host-local and portmap; its path is their directory.
    CniPlugins,
    /// `flannel`, the CNI plugin; its path is the directory with this one file.
    FlannelCni,
    /// `flanneld`
    Flanneld,
    /// `coredns`
    CoreDns,
    /// `agnhost`, the server and client of Kubernetes' tests.
    Agnhost,
    /// `regression-issue-74839`, a server of one Conntrack test.
    RegressionIssue74839,
    /// `e2e.test`: Kubernetes' tests of SIG Network.
    E2eTest,
    /// `ginkgo`, which runs `e2e.test` in parallel.
    Ginkgo,
    /// `helm`
    Helm,
}

impl Program {
    /// What a cluster's own processes are, with `kubectl`.
    pub const CLUSTER: &[Self] = &[
        Self::KubeApiserver,
        Self::KubeControllerManager,
        Self::KubeScheduler,
        Self::Kubelet,
        Self::Kubectl,
        Self::Containerd,
        Self::ContainerdShim,
        Self::Ctr,
        Self::CniPlugins,
        Self::CoreDns,
        Self::KubeProxy,
    ];

    /// What runs upstream's tests.
    pub const TESTS: &[Self] = &[Self::E2eTest, Self::Ginkgo];
}
