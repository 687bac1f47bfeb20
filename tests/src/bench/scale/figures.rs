//! What comes out, for people and for programs.

use std::fmt::{self, Write as _};

use serde::Serialize;

use super::objects::Size;
use super::proxy::Proxy;

/// One size with one proxy.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// Services and endpoints.
    pub size: Size,
    /// The proxy.
    pub proxy: Proxy,
    /// Each start of it.
    pub loads: Vec<Load>,
    /// Changes, after the last start.
    pub changes: Option<Changes>,
}

/// A start with the lists waiting.
#[derive(Clone, Debug, Serialize)]
pub struct Load {
    /// From the start of the process to a kernel that holds everything; absent if that was not within the limit.
    pub seconds: Option<f64>,
    /// How much of that the proxy itself says it spent on programming; before its first sync has ended it says nothing.
    pub sync_seconds: Option<f64>,
    /// CPU time until it was at rest, its children's included.
    pub cpu_seconds: f64,
    /// Anonymous resident memory then.
    pub anonymous_kib: u64,
    /// Whether the machine did nothing else when it began.
    pub quiet: bool,
}

/// Changes of one endpoint.
#[derive(Clone, Debug, Serialize)]
pub struct Changes {
    /// How many were to be made; fewer were measured if the limit was over.
    pub wanted: usize,
    /// How long the API server took to answer, sorted.
    pub write_milliseconds: Vec<f64>,
    /// From then to the first connection that reached the new endpoint, sorted.
    pub kernel_milliseconds: Vec<f64>,
    /// Connections meanwhile that nobody answered.
    pub failed_connections: usize,
    /// CPU time of all changes.
    pub cpu_seconds: f64,
    /// Anonymous resident memory after them.
    pub anonymous_kib: u64,
}

impl Case {
    /// Nothing has been measured.
    pub fn new(size: Size, proxy: Proxy) -> Self {
        Self { size, proxy, loads: Vec::new(), changes: None }
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.seconds {
            Some(seconds) => write!(f, "all in the kernel after {seconds:.2} s")?,
            None => f.write_str("not all in the kernel within the limit")?,
        }
        write!(f, ", CPU {:.2} s, {:.0} MiB", self.cpu_seconds, mebibytes(self.anonymous_kib))
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let times = &self.kernel_milliseconds;
        let [median, high] = [50, 99].map(|percent| percentile(times, percent).unwrap_or_default());
        write!(f, "{} of {} changes, p50 {median:.2} ms, p99 {high:.2} ms", times.len(), self.wanted)
    }
}

/// The value that `percent` of a hundred sorted values do not exceed; `None` if there are none.
pub fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

fn mebibytes(kib: u64) -> f64 {
    real(kib) / 1_024.0
}

/// A count as a factor; none here comes near the limit.
fn real(count: impl TryInto<u32>) -> f64 {
    f64::from(count.try_into().unwrap_or(u32::MAX))
}

/// One line of a table: what it says, and how it is found.
type Row = (&'static str, fn(&Case) -> String);

const ROWS: &[Row] = &[
    ("lists to kernel, s", |case| {
        if case.loads.iter().any(|load| load.seconds.is_none()) {
            return "not within the limit".to_owned();
        }
        spread(case.loads.iter().filter_map(|load| load.seconds), 2)
    }),
    ("  its own share of that, s", |case| spread(case.loads.iter().filter_map(|load| load.sync_seconds), 2)),
    ("  CPU, s", |case| spread(case.loads.iter().map(|load| load.cpu_seconds), 2)),
    ("  anonymous memory, MiB", |case| spread(case.loads.iter().map(|load| mebibytes(load.anonymous_kib)), 1)),
    ("  starts on a busy machine", |case| {
        let busy = case.loads.iter().filter(|load| !load.quiet).count();
        if busy == 0 { "0".to_owned() } else { format!("{busy} of {}", case.loads.len()) }
    }),
    ("write to kernel, p50, ms", |case| change(case, |changes| percentile(&changes.kernel_milliseconds, 50))),
    ("  p99, ms", |case| change(case, |changes| percentile(&changes.kernel_milliseconds, 99))),
    ("  longest, ms", |case| change(case, |changes| percentile(&changes.kernel_milliseconds, 100))),
    ("  API server's answer, p50, ms", |case| change(case, |changes| percentile(&changes.write_milliseconds, 50))),
    ("  CPU a change, ms", |case| {
        change(case, |changes| {
            let count = changes.kernel_milliseconds.len();
            (count > 0).then(|| changes.cpu_seconds * 1_000.0 / real(count))
        })
    }),
    ("  anonymous memory after, MiB", |case| change(case, |changes| Some(mebibytes(changes.anonymous_kib)))),
    ("  changes", |case| {
        case.changes.as_ref().map_or_else(String::new, |changes| {
            let count = changes.kernel_milliseconds.len();
            if count == changes.wanted { count.to_string() } else { format!("{count} of {}", changes.wanted) }
        })
    }),
    ("  connections that failed", |case| {
        case.changes.as_ref().map_or_else(String::new, |changes| changes.failed_connections.to_string())
    }),
];

/// The median, and the range if there are several.
fn spread(values: impl Iterator<Item = f64>, digits: usize) -> String {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let (Some(min), Some(median), Some(max)) = (values.first(), percentile(&values, 50), values.last()) else {
        return String::new();
    };
    let mut text = format!("{median:.digits$}");
    if values.len() > 1 {
        let _ = write!(text, " ({min:.digits$} to {max:.digits$})");
    }
    text
}

fn change(case: &Case, figure: impl Fn(&Changes) -> Option<f64>) -> String {
    case.changes.as_ref().and_then(figure).map_or_else(String::new, |figure| format!("{figure:.2}"))
}

/// What was measured of one size, a column for each proxy.
pub fn table(cases: &[Case]) -> String {
    let mut text = String::new();
    let Some(Case { size, .. }) = cases.first() else { return text };
    let title = format!("{} Services, {} endpoints each", size.services, size.endpoints);
    line(&mut text, &title, cases.iter().map(|case| case.proxy.name().to_owned()));
    for (name, figure) in ROWS {
        line(&mut text, name, cases.iter().map(figure));
    }
    text.push('\n');
    text
}

fn line(text: &mut String, name: &str, cells: impl Iterator<Item = String>) {
    let mut line = format!("{name:<38}");
    for cell in cells {
        let _ = write!(line, "{cell:>28}");
    }
    text.push_str(line.trim_end());
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!([1, 50, 99, 100].map(|percent| percentile(&values, percent)), [2.0, 100.0, 198.0, 200.0].map(Some));
        assert_eq!((percentile(&[7.0], 50), percentile(&[], 50)), (Some(7.0), None));
    }

    #[test]
    fn what_was_too_slow_is_said() {
        let size: Size = "5000x50".parse().unwrap();
        let load =
            |seconds| Load { seconds, sync_seconds: Some(1.0), cpu_seconds: 2.0, anonymous_kib: 3_072, quiet: true };
        let changes = Changes {
            wanted: 3,
            write_milliseconds: vec![1.0, 2.0],
            kernel_milliseconds: vec![3.0, 5.0],
            failed_connections: 4,
            cpu_seconds: 0.5,
            anonymous_kib: 4_096,
        };
        let quick = Case {
            loads: vec![load(Some(2.0)), load(Some(1.0))],
            changes: Some(changes),
            ..Case::new(size, Proxy::Culvert)
        };
        let slow = Case { loads: vec![load(None)], ..Case::new(size, Proxy::Iptables) };
        let text = table(&[quick, slow]);
        let words: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split("  ").map(str::trim).filter(|word| !word.is_empty()).collect())
            .collect();
        assert_eq!(words[0], ["5000 Services, 50 endpoints each", "culvert", "kube-proxy:iptables"], "{text}");
        assert_eq!(words[1], ["lists to kernel, s", "1.00 (1.00 to 2.00)", "not within the limit"], "{text}");
        assert!(words.contains(&vec!["anonymous memory, MiB", "3.0 (3.0 to 3.0)", "3.0"]), "{text}");
        assert!(
            words.contains(&vec!["p99, ms", "5.00"]) && words.contains(&vec!["CPU a change, ms", "250.00"]),
            "{text}"
        );
        assert!(words.contains(&vec!["changes", "2 of 3"]), "{text}");
    }
}
