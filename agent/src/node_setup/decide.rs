//! What should change, without changing it. The rules are those of kube-proxy (`pkg/proxy/conntrack/sysctls.go`, Kubernetes 1.36).

/// Connections that kube-proxy lets netfilter track at most, however many cores there are.
const MOST: u64 = 1 << 20;

/// A numeric parameter of the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// As sysctl(8) or modinfo(8) name it.
    pub name: &'static str,
    /// The file, from the root directory.
    pub path: &'static str,
}

/// Connections that netfilter may track.
pub const MAX: Parameter =
    Parameter { name: "net.netfilter.nf_conntrack_max", path: "proc/sys/net/netfilter/nf_conntrack_max" };
/// Buckets of the table of connections.
pub const HASH_SIZE: Parameter =
    Parameter { name: "nf_conntrack.hashsize", path: "sys/module/nf_conntrack/parameters/hashsize" };
/// Seconds of an idle established TCP connection.
pub const ESTABLISHED: Parameter = Parameter {
    name: "net.netfilter.nf_conntrack_tcp_timeout_established",
    path: "proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established",
};
/// Seconds of a TCP connection of which one side has closed.
pub const CLOSE_WAIT: Parameter = Parameter {
    name: "net.netfilter.nf_conntrack_tcp_timeout_close_wait",
    path: "proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait",
};

/// What a parameter should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Exactly this.
    Exactly(u64),
    /// This or more. Unlike kube-proxy, which lowers what an administrator has raised.
    AtLeast(u64),
}

/// Limits and timeouts of connections; 0 leaves one as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conntrack {
    /// Connections for each core.
    pub max_per_core: u64,
    /// Connections however few cores there are.
    pub min: u64,
    /// Seconds of an idle established TCP connection.
    pub established: u64,
    /// Seconds of a TCP connection of which one side has closed.
    pub close_wait: u64,
}

impl Conntrack {
    /// What to set on a machine of so many cores, in this order.
    pub fn rules(&self, cores: u64) -> Vec<(Parameter, Rule)> {
        let mut rules = Vec::new();
        if let Some(max) = self.max(cores) {
            // kube-proxy's four connections a bucket.
            rules.extend([(MAX, Rule::AtLeast(max)), (HASH_SIZE, Rule::AtLeast(max / 4))]);
        }
        let timeouts = [(ESTABLISHED, self.established), (CLOSE_WAIT, self.close_wait)];
        let timeouts = timeouts.into_iter().filter(|(_, seconds)| *seconds > 0);
        rules.extend(timeouts.map(|(parameter, seconds)| (parameter, Rule::Exactly(seconds))));
        rules
    }

    fn max(&self, cores: u64) -> Option<u64> {
        if self.max_per_core == 0 {
            return None;
        }
        let scaled = self.max_per_core.saturating_mul(cores);
        Some(if scaled > MOST { MOST } else { scaled.max(self.min) })
    }
}

impl Rule {
    /// What to write where this was found; `None`: nothing.
    pub fn change(self, found: u64) -> Option<u64> {
        match self {
            Self::Exactly(wanted) => (found != wanted).then_some(wanted),
            Self::AtLeast(wanted) => (found < wanted).then_some(wanted),
        }
    }
}

/// How many CPUs a list such as `0-3,8` names (`/sys/devices/system/cpu/online`).
pub fn cpus(list: &str) -> Option<u64> {
    list.trim().split(',').try_fold(0u64, |sum, range| {
        let (low, high) = range.split_once('-').unwrap_or((range, range));
        let (low, high) = (low.parse::<u32>().ok()?, high.parse::<u32>().ok()?);
        sum.checked_add(u64::from(high.checked_sub(low)?) + 1)
    })
}

/// Whether what is mounted below a path is seen in other mount namespaces too: whether the mount that holds it is shared
/// (`/proc/self/mountinfo`, proc(5)). `None` if no mount holds it.
pub fn is_shared(mountinfo: &str, path: &str) -> Option<bool> {
    let mut holds: Option<(usize, bool)> = None;
    for line in mountinfo.lines() {
        let mut fields = line.split(' ').skip(4);
        let Some(point) = fields.next().map(unescape) else { continue };
        let shared = fields.skip(1).take_while(|field| *field != "-").any(|field| field.starts_with("shared:"));
        // The longest wins, and of two on one point the later one, which lies on top.
        if is_below(path, &point) && holds.is_none_or(|(length, _)| point.len() >= length) {
            holds = Some((point.len(), shared));
        }
    }
    holds.map(|(_, shared)| shared)
}

fn is_below(path: &str, point: &str) -> bool {
    let point = point.trim_end_matches('/');
    path.strip_prefix(point).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Blanks, tabs, line ends and backslashes are written as `\` and three octal digits.
fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(field.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: Conntrack = Conntrack { max_per_core: 32_768, min: 131_072, established: 86_400, close_wait: 3_600 };

    #[test]
    fn the_limit_follows_the_cores_as_kube_proxy_has_it() {
        for (cores, max) in
            [(1, 131_072), (4, 131_072), (5, 163_840), (32, 1_048_576), (33, 1_048_576), (512, 1_048_576)]
        {
            assert_eq!(USUAL.max(cores), Some(max), "{cores} cores");
        }
        assert_eq!(Conntrack { min: 0, ..USUAL }.max(2), Some(65_536));
        assert_eq!(Conntrack { max_per_core: u64::MAX, ..USUAL }.max(2), Some(1_048_576));
        assert_eq!(Conntrack { max_per_core: 0, ..USUAL }.max(2), None);
    }

    #[test]
    fn everything_can_be_left_as_it_is() {
        let names =
            |conntrack: Conntrack| conntrack.rules(2).into_iter().map(|(parameter, _)| parameter).collect::<Vec<_>>();
        assert_eq!(names(USUAL), [MAX, HASH_SIZE, ESTABLISHED, CLOSE_WAIT]);
        assert_eq!(names(Conntrack { max_per_core: 0, ..USUAL }), [ESTABLISHED, CLOSE_WAIT]);
        assert_eq!(names(Conntrack { established: 0, ..USUAL }), [MAX, HASH_SIZE, CLOSE_WAIT]);
        assert_eq!(names(Conntrack { max_per_core: 0, min: 131_072, established: 0, close_wait: 0 }), []);
    }

    #[test]
    fn limits_are_raised_and_timeouts_set() {
        assert_eq!(Rule::AtLeast(10).change(9), Some(10));
        assert_eq!(Rule::AtLeast(10).change(10), None);
        assert_eq!(Rule::AtLeast(10).change(11), None);
        assert_eq!(Rule::Exactly(10).change(11), Some(10));
        assert_eq!(Rule::Exactly(10).change(10), None);
    }

    #[test]
    fn lists_of_cpus_are_counted() {
        for (list, count) in [("0\n", Some(1)), ("0-3", Some(4)), ("0-3,8,10-11", Some(7)), ("", None), ("3-0", None)] {
            assert_eq!(cpus(list), count, "{list:?}");
        }
    }

    #[test]
    fn the_mount_that_holds_a_path_is_found() {
        let mounts = "21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
                      22 21 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n\
                      23 21 0:21 / /host/bpf rw,relatime - sysfs sysfs rw\n\
                      24 21 0:22 / /with\\040blank rw shared:9 master:3 - tmpfs tmpfs rw\n\
                      25 24 0:23 / /with\\040blank rw - tmpfs tmpfs rw\n";
        for (path, shared) in [
            ("/", true),
            ("/sys/fs/bpf", true),
            ("/system", true),
            ("/host/bpf", false),
            ("/host/bpf/below", false),
            ("/host/bpfother", true),
            // The one on top counts.
            ("/with blank", false),
        ] {
            assert_eq!(is_shared(mounts, path), Some(shared), "{path}");
        }
        assert_eq!(is_shared("", "/sys"), None);
    }
}
