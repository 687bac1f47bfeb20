//! The programs of a test cluster, and what each is built from.

/// Whose programs they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Project {
    /// Kubernetes, its tests and their runner.
    Kubernetes,
    /// The API server's database.
    Etcd,
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
    /// A web server.
    Caddy,
    /// A gRPC service of our own and its clients.
    Grpc,
    /// MetalLB: its controller, and its samples and manifests, which tests read.
    MetalLb,
}

impl Project {
    /// The directory below `tests/cluster/` whose `go.mod` pins it. What goes with the same version of Kubernetes' libraries has one together:
    /// each library is compiled once then.
    pub const fn directory(self) -> &'static str {
        match self {
            Self::Kubernetes | Self::Etcd | Self::Containerd | Self::CoreDns | Self::Helm => "kubernetes",
            Self::Flannel | Self::MetalLb => "kubernetes-0.34",
            Self::FlannelCni => "flannel-cni",
            Self::Caddy => "caddy",
            Self::Grpc => "grpc",
        }
    }

    /// The module whose version its programs report.
    pub const fn main_module(self) -> &'static str {
        match self {
            Self::Kubernetes => "k8s.io/kubernetes",
            Self::Etcd => "go.etcd.io/etcd/server/v3",
            Self::Containerd => "github.com/containerd/containerd/v2",
            Self::CoreDns => "github.com/coredns/coredns",
            Self::Flannel => "github.com/flannel-io/flannel",
            Self::FlannelCni => "github.com/containernetworking/plugins",
            Self::Helm => "helm.sh/helm/v4",
            Self::Caddy => "github.com/caddyserver/caddy/v2",
            Self::Grpc => "google.golang.org/grpc",
            Self::MetalLb => "go.universe.tf/metallb",
        }
    }

    /// Linker flags that tell its programs their version (`v1.2.3`), where they cannot know it otherwise.
    pub fn stamps(self, version: &str) -> Vec<String> {
        let number = version.trim_start_matches('v');
        let mut parts = number.split('.');
        let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        match self {
            Self::Kubernetes => vec![
                format!("k8s.io/component-base/version.gitVersion={version}"),
                format!("k8s.io/component-base/version.gitMajor={major}"),
                format!("k8s.io/component-base/version.gitMinor={minor}"),
            ],
            Self::Containerd => vec![format!("github.com/containerd/containerd/v2/version.Version={number}")],
            Self::Flannel => vec![format!("github.com/flannel-io/flannel/pkg/version.Version={version}")],
            Self::Helm => vec![format!("helm.sh/helm/v4/internal/version.version={version}")],
            Self::Etcd | Self::CoreDns | Self::FlannelCni | Self::Caddy | Self::Grpc | Self::MetalLb => Vec::new(),
        }
    }
}

/// What is built in one go. runc is Debian's, and in the search path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Program {
    /// `etcd`. Debian's is too old: the API server streams no lists with it.
    Etcd,
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
    /// The plugins bridge, ptp, loopback, host-local and portmap; the path is their directory.
    CniPlugins,
    /// `flannel`, the CNI plugin; the path is the directory with this one file.
    FlannelCni,
    /// `flanneld`
    Flanneld,
    /// `install-conf`, with which flannel's pods install their CNI configuration.
    FlannelInstallConf,
    /// `coredns`
    CoreDns,
    /// `agnhost`, server and client of Kubernetes' tests.
    Agnhost,
    /// `regression-issue-74839`, the server of one Conntrack test.
    RegressionIssue74839,
    /// `e2e.test`: Kubernetes' tests of SIG Network.
    E2eTest,
    /// `ginkgo`, which runs `e2e.test` in parallel.
    Ginkgo,
    /// `helm`
    Helm,
    /// `caddy`
    Caddy,
    /// `grpc`: a service that tests roll, and its clients.
    Grpc,
    /// `metallb-controller`: what gives addresses where Culvert does not.
    MetalLbController,
}

/// How `go` makes it.
pub enum Kind {
    /// `go build` of one package, to a file.
    Program,
    /// `go build` of several packages, to a directory.
    Directory,
    /// `go test -c`.
    Test,
}

/// How a program is made.
pub struct Recipe {
    /// The file's name, or the directory's.
    pub name: &'static str,
    /// Whose it is.
    pub project: Project,
    /// The packages; `./x` is one of our own, in the module's directory.
    pub packages: &'static [&'static str],
    /// How.
    pub kind: Kind,
    /// Build tags.
    pub tags: &'static str,
    /// Whether it contains C; it is linked statically then.
    pub cgo: bool,
}

const fn program(name: &'static str, project: Project, packages: &'static [&'static str]) -> Recipe {
    Recipe { name, project, packages, kind: Kind::Program, tags: "", cgo: false }
}

/// File systems whose snapshots containerd could use; they want C libraries or devices.
const CONTAINERD_TAGS: &str = "no_btrfs no_devmapper no_zfs";

const fn containerd(name: &'static str, packages: &'static [&'static str]) -> Recipe {
    Recipe { tags: CONTAINERD_TAGS, ..program(name, Project::Containerd, packages) }
}

impl Program {
    /// A cluster's own processes, `kubectl`, and the reference proxy.
    pub const CLUSTER: &[Self] = &[
        Self::Etcd,
        Self::KubeApiserver,
        Self::KubeControllerManager,
        Self::KubeScheduler,
        Self::Kubelet,
        Self::Kubectl,
        Self::KubeProxy,
        Self::Containerd,
        Self::ContainerdShim,
        Self::Ctr,
        Self::CniPlugins,
        Self::CoreDns,
    ];

    /// The overlay network.
    pub const FLANNEL: &[Self] = &[Self::Flanneld, Self::FlannelInstallConf, Self::FlannelCni];

    /// What tests run in pods, beside what images have.
    pub const SOFTWARE: &[Self] = &[Self::Caddy, Self::Grpc];

    /// What runs upstream's tests.
    pub const TESTS: &[Self] = &[Self::E2eTest, Self::Ginkgo];

    /// How it is made.
    pub const fn recipe(self) -> Recipe {
        use Project::{Caddy, CoreDns, Etcd, Flannel, FlannelCni, Grpc, Helm, Kubernetes, MetalLb};
        match self {
            Self::Etcd => program("etcd", Etcd, &["go.etcd.io/etcd/server/v3"]),
            Self::KubeApiserver => program("kube-apiserver", Kubernetes, &["k8s.io/kubernetes/cmd/kube-apiserver"]),
            Self::KubeControllerManager => {
                program("kube-controller-manager", Kubernetes, &["k8s.io/kubernetes/cmd/kube-controller-manager"])
            }
            Self::KubeScheduler => program("kube-scheduler", Kubernetes, &["k8s.io/kubernetes/cmd/kube-scheduler"]),
            Self::Kubelet => program("kubelet", Kubernetes, &["k8s.io/kubernetes/cmd/kubelet"]),
            Self::KubeProxy => program("kube-proxy", Kubernetes, &["k8s.io/kubernetes/cmd/kube-proxy"]),
            Self::Kubectl => program("kubectl", Kubernetes, &["k8s.io/kubernetes/cmd/kubectl"]),
            Self::Agnhost => program("agnhost", Kubernetes, &["k8s.io/kubernetes/test/images/agnhost"]),
            Self::RegressionIssue74839 => {
                program("regression-issue-74839", Kubernetes, &["k8s.io/kubernetes/test/images/regression-issue-74839"])
            }
            Self::E2eTest => Recipe { kind: Kind::Test, ..program("e2e.test", Kubernetes, &["./e2e"]) },
            Self::Ginkgo => program("ginkgo", Kubernetes, &["github.com/onsi/ginkgo/v2/ginkgo"]),
            Self::Containerd => containerd("containerd", &["github.com/containerd/containerd/v2/cmd/containerd"]),
            Self::ContainerdShim => containerd(
                "containerd-shim-runc-v2",
                &["github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"],
            ),
            Self::Ctr => containerd("ctr", &["github.com/containerd/containerd/v2/cmd/ctr"]),
            Self::CniPlugins => Recipe {
                kind: Kind::Directory,
                ..program(
                    "cni",
                    Project::Containerd,
                    &[
                        "github.com/containernetworking/plugins/plugins/ipam/host-local",
                        "github.com/containernetworking/plugins/plugins/main/bridge",
                        "github.com/containernetworking/plugins/plugins/main/loopback",
                        "github.com/containernetworking/plugins/plugins/main/ptp",
                        "github.com/containernetworking/plugins/plugins/meta/portmap",
                    ],
                )
            },
            Self::FlannelCni => Recipe {
                kind: Kind::Directory,
                ..program("flannel-cni", FlannelCni, &["github.com/containernetworking/plugins/plugins/meta/flannel"])
            },
            // One of its backends is C. A static program must not ask the C library for names and users.
            Self::Flanneld => Recipe {
                cgo: true,
                tags: "netgo osusergo",
                ..program("flanneld", Flannel, &["github.com/flannel-io/flannel"])
            },
            Self::FlannelInstallConf => {
                program("install-conf", Flannel, &["github.com/flannel-io/flannel/cmd/install_conf"])
            }
            Self::CoreDns => program("coredns", CoreDns, &["./coredns"]),
            Self::Helm => program("helm", Helm, &["helm.sh/helm/v4/cmd/helm"]),
            Self::Caddy => program("caddy", Caddy, &["."]),
            Self::Grpc => program("grpc", Grpc, &["."]),
            Self::MetalLbController => program("metallb-controller", MetalLb, &["go.universe.tf/metallb/controller"]),
        }
    }
}
