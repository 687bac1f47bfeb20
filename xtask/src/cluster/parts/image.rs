//! The images of a test cluster.

use std::{fs, path::Path, time::Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{
    build::{Programs, programs, prune},
    host,
    program::Program,
};
use crate::{
    oci::{self, Archive, Config, Layer, hex},
    step::Job,
    ui::clock,
};

/// An image that pods of test clusters name. Names and tags of those that Kubernetes' tests use are in its
/// test/utils/image/manifest.go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Image {
    /// What holds a pod's namespaces.
    Pause,
    /// Server and client of most tests.
    Agnhost,
    /// A shell.
    Busybox,
    /// conntrack and iptables: what the test of connections in `CLOSE_WAIT` runs on nodes.
    DistrolessIptables,
    /// A server of one Conntrack test.
    RegressionIssue74839,
    /// A web server: what tests of EndpointSlices run in their pods.
    Nginx,
    /// dig, on the GNU C library: what tests of DNS ask from.
    GlibcDnsTesting,
    /// The API server, for clusters that run it as a static pod.
    KubeApiserver,
    /// The reference proxy.
    KubeProxy,
    /// The DNS server.
    CoreDns,
    /// The overlay network's daemon.
    Flannel,
    /// The overlay network's CNI plugin.
    FlannelCni,
    /// Ordinary servers and clients: etcd, NGINX, HAProxy, dnsmasq, socat, iperf3.
    Servers,
}

/// Debian's servers and clients.
const SERVERS: &[&str] = &["dnsmasq", "etcd", "etcdctl", "haproxy", "iperf3", "nginx", "socat", "wrk"];

impl Image {
    /// What a cluster itself may run as pods.
    pub const CLUSTER: &[Self] = &[Self::Pause, Self::CoreDns, Self::KubeApiserver, Self::KubeProxy];

    /// What upstream's tests of SIG Network need.
    pub const TESTS: &[Self] = &[
        Self::Agnhost,
        Self::Busybox,
        Self::DistrolessIptables,
        Self::RegressionIssue74839,
        Self::Nginx,
        Self::GlibcDnsTesting,
    ];

    /// The overlay network.
    pub const FLANNEL: &[Self] = &[Self::Flannel, Self::FlannelCni];

    /// Its name and tag, as pods give it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pause => "registry.k8s.io/pause:3.10.2",
            Self::Agnhost => "registry.k8s.io/e2e-test-images/agnhost:2.63.0",
            Self::Busybox => "registry.k8s.io/e2e-test-images/busybox:1.37.0-1",
            Self::DistrolessIptables => "registry.k8s.io/build-image/distroless-iptables:v0.9.6",
            Self::RegressionIssue74839 => "registry.k8s.io/e2e-test-images/regression-issue-74839:1.4",
            Self::Nginx => "registry.k8s.io/e2e-test-images/nginx:1.15-4",
            Self::GlibcDnsTesting => "registry.k8s.io/e2e-test-images/glibc-dns-testing:2.0.0",
            Self::KubeApiserver => "registry.k8s.io/kube-apiserver:v1.36.3",
            Self::KubeProxy => "registry.k8s.io/kube-proxy:v1.36.3",
            Self::CoreDns => "registry.k8s.io/coredns/coredns:v1.14.7",
            Self::Flannel => "ghcr.io/flannel-io/flannel:v0.28.10",
            Self::FlannelCni => "ghcr.io/flannel-io/flannel-cni-plugin:v0.9.1",
            Self::Servers => "culvert.test/servers:1",
        }
    }

    /// The programs in it that are built here.
    const fn programs(self) -> &'static [Program] {
        match self {
            Self::Pause => &[Program::Agnhost],
            Self::Agnhost => &[Program::Agnhost, Program::CoreDns],
            Self::RegressionIssue74839 => &[Program::RegressionIssue74839],
            Self::KubeApiserver => &[Program::KubeApiserver],
            Self::KubeProxy => &[Program::KubeProxy],
            Self::CoreDns => &[Program::CoreDns],
            Self::Flannel => &[Program::Flanneld, Program::FlannelInstallConf],
            Self::FlannelCni => &[Program::FlannelCni],
            Self::Busybox | Self::DistrolessIptables | Self::Nginx | Self::GlibcDnsTesting | Self::Servers => &[],
        }
    }

    fn layers(self, tools: &Layer, built: &Programs) -> Result<Vec<Layer>> {
        let mut layer = Layer::default();
        let mut add = |path: &str, program: Program| -> Result<()> {
            layer.file(path, built.path(program)?, 0o755);
            Ok(())
        };
        Ok(match self {
            Self::Pause => {
                add("agnhost", Program::Agnhost)?;
                vec![layer]
            }
            Self::Agnhost => {
                add("agnhost", Program::Agnhost)?;
                // Some tests of DNS run one in this image.
                add("coredns", Program::CoreDns)?;
                layer.link("agnhost-2", "agnhost");
                layer.directory("uploads", 0o777);
                vec![tools.clone(), layer]
            }
            Self::Busybox => vec![host::busybox()?],
            Self::DistrolessIptables | Self::GlibcDnsTesting => vec![tools.clone()],
            Self::Nginx => {
                host::program(&mut layer, "nginx")?;
                nginx_directories(&mut layer);
                layer.text("etc/nginx/nginx.conf", NGINX);
                layer.text("usr/share/nginx/html/index.html", "<!DOCTYPE html><title>nginx</title>\n");
                vec![tools.clone(), layer]
            }
            Self::RegressionIssue74839 => {
                add("regression-issue-74839", Program::RegressionIssue74839)?;
                vec![layer]
            }
            Self::KubeApiserver => {
                add("usr/local/bin/kube-apiserver", Program::KubeApiserver)?;
                vec![layer]
            }
            Self::KubeProxy => {
                add("usr/local/bin/kube-proxy", Program::KubeProxy)?;
                vec![tools.clone(), layer]
            }
            Self::CoreDns => {
                add("coredns", Program::CoreDns)?;
                vec![layer]
            }
            Self::Flannel => {
                add("opt/bin/flanneld", Program::Flanneld)?;
                add("opt/bin/install-conf", Program::FlannelInstallConf)?;
                vec![tools.clone(), layer]
            }
            Self::FlannelCni => {
                layer.file("flannel", built.path(Program::FlannelCni)?.join("flannel"), 0o755);
                vec![host::busybox()?, layer]
            }
            Self::Servers => {
                for server in SERVERS {
                    host::program(&mut layer, server)?;
                }
                nginx_directories(&mut layer);
                layer.directory("var/lib/haproxy", 0o755);
                vec![tools.clone(), layer]
            }
        })
    }

    fn config(self) -> Config {
        let (entrypoint, arguments): (&[&str], &[&str]) = match self {
            Self::Pause => (&["/agnhost", "pause"], &[]),
            Self::Agnhost => (&["/agnhost"], &["pause"]),
            Self::Busybox | Self::DistrolessIptables | Self::GlibcDnsTesting | Self::FlannelCni | Self::Servers => {
                (&[], &["sh"])
            }
            Self::Nginx => (&["nginx"], &["-g", "daemon off;"]),
            Self::RegressionIssue74839 => (&["/regression-issue-74839"], &[]),
            Self::KubeApiserver => (&["/usr/local/bin/kube-apiserver"], &[]),
            Self::KubeProxy => (&["/usr/local/bin/kube-proxy"], &[]),
            Self::CoreDns => (&["/coredns"], &[]),
            Self::Flannel => (&["/opt/bin/flanneld"], &[]),
        };
        let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        Config {
            entrypoint: owned(entrypoint),
            arguments: owned(arguments),
            environment: owned(&["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]),
            ..Config::default()
        }
    }
}

/// A server of static files on port 80.
const NGINX: &str = "user root;\nerror_log stderr;\nevents {}\nhttp {\n  access_log off;\n  server {\n    listen 80;\n    \
                     listen [::]:80;\n    root /usr/share/nginx/html;\n  }\n}\n";

/// What Debian's nginx writes to.
fn nginx_directories(layer: &mut Layer) {
    for directory in ["var/lib/nginx", "var/log/nginx"] {
        layer.directory(directory, 0o755);
    }
}

/// Makes what is missing of `wanted`, with the programs in it; in their order.
///
/// # Errors
/// If a program cannot be built, or one of Debian's is missing (`setup::cluster` installs them).
pub fn images(job: &mut Job, wanted: &[Image]) -> Result<Vec<Archive>> {
    let mut needed: Vec<Program> = Vec::new();
    for program in wanted.iter().flat_map(|image| image.programs()) {
        if !needed.contains(program) {
            needed.push(*program);
        }
    }
    let built = programs(job, &needed)?;
    let tools = host::tools()?;
    wanted
        .iter()
        .map(|&image| make(job, image, &tools, &built).with_context(|| format!("image {}", image.name())))
        .collect()
}

fn make(job: &mut Job, image: Image, tools: &Layer, built: &Programs) -> Result<Archive> {
    let (config, layers) = (image.config(), image.layers(tools, built)?);
    let mut hash = Sha256::new();
    hash.update(format!("{}\0{:?}\0{:?}\0", image.name(), config.entrypoint, config.arguments));
    for layer in &layers {
        layer.fingerprint(&mut hash)?;
    }
    let key = hex(&hash.finalize()[..8]);
    let home = job.workspace.cluster().join("images").join(short_name(image));
    let path = home.join(&key).join("image.tar");
    let note = path.with_extension("json");
    if let Some(archive) = recall(image, &path, &note) {
        return Ok(archive);
    }
    job.note(&format!("image {}", image.name()));
    let started = Instant::now();
    let archive = oci::write(&path, image.name(), &config, &layers)?;
    let text = json!({ "digest": archive.digest, "size": archive.size });
    fs::write(&note, text.to_string()).with_context(|| format!("cannot write {}", note.display()))?;
    prune(&home);
    job.report(&format!("image {}, {} MB, {}", image.name(), archive.size / 1_000_000, clock(started.elapsed())));
    Ok(archive)
}

fn short_name(image: Image) -> String {
    image.name().rsplit('/').next().unwrap_or_default().replace(':', "-")
}

/// An image made earlier.
fn recall(image: Image, path: &Path, note: &Path) -> Option<Archive> {
    let note: Value = serde_json::from_str(&fs::read_to_string(note).ok()?).ok()?;
    path.is_file().then_some(Archive {
        name: image.name().to_owned(),
        path: path.to_owned(),
        digest: note["digest"].as_str()?.to_owned(),
        size: note["size"].as_u64()?,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::cluster::parts::build::required;

    /// A new version in a go.mod must come with the tag that pods name.
    #[test]
    fn tags_are_the_versions_that_are_built() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/cluster");
        for image in [Image::KubeApiserver, Image::KubeProxy, Image::CoreDns, Image::Flannel, Image::FlannelCni] {
            let project = image.programs()[0].recipe().project;
            let go_mod = fs::read_to_string(root.join(project.directory()).join("go.mod")).unwrap();
            let version = required(&go_mod, project.main_module()).unwrap();
            assert!(image.name().ends_with(&format!(":{version}")), "{} is not {version}", image.name());
        }
    }
}
