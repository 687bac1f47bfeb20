//! The dimensions that everything is tried in, and docs/CONFORMANCE.md.

use std::{fs, process::Command};

use anyhow::{Context, Result};

use super::{kept::Run, results::markdown};
use crate::{
    cluster::options::{Cni, Families, Options, Proxy, Sockets},
    process::output,
    ui::say,
    workspace::Workspace,
};

/// What the name of a run ends with that is about Services of type LoadBalancer.
const LOAD_BALANCERS: &str = " loadbalancers";

/// Names a run by what it runs on.
pub fn title(options: &Options) -> String {
    let Options { proxy, families, cni, sockets, loadbalancers, .. } = options;
    match proxy {
        Proxy::Culvert if *loadbalancers => format!("{proxy} {families} {cni} {sockets}{LOAD_BALANCERS}"),
        Proxy::Culvert => format!("{proxy} {families} {cni} {sockets}"),
        _ => format!("{proxy} {families} {cni}"),
    }
}

/// Every value of each dimension, the others being the usual ones.
pub fn columns(base: &Options) -> Vec<(String, Options)> {
    let usual = Options { nodes: base.nodes, ..Options::usual(base.name.clone()) };
    let variants = [
        usual.clone(),
        Options { sockets: Sockets::Host, ..usual.clone() },
        Options { families: Families::V6, ..usual.clone() },
        Options { families: Families::Dual, ..usual.clone() },
        Options { cni: Cni::Ptp, ..usual.clone() },
        Options { cni: Cni::Flannel, ..usual.clone() },
        Options { proxy: Proxy::Nftables, ..usual },
    ];
    variants.into_iter().map(|options| (title(&options), options)).collect()
}

/// What Services of type LoadBalancer are tried in.
pub fn load_balancers(base: &Options) -> Vec<(String, Options)> {
    let usual = Options { nodes: base.nodes, loadbalancers: true, ..Options::usual(base.name.clone()) };
    let both = |cni| [Families::V4, Families::V6].map(|families| Options { families, cni, ..usual.clone() });
    [both(Cni::Bridge), both(Cni::Ptp)].into_iter().flatten().map(|options| (title(&options), options)).collect()
}

/// Writes docs/CONFORMANCE.md.
pub fn write(workspace: &Workspace, runs: &[Run]) -> Result<()> {
    let path = workspace.root.join("docs/CONFORMANCE.md");
    fs::write(&path, page(runs, &facts(workspace)?)).with_context(|| path.display().to_string())?;
    say(&format!("      {} is written", path.display()));
    Ok(())
}

/// What the results hold for, a line each.
fn facts(workspace: &Workspace) -> Result<[String; 2]> {
    let linux = output(Command::new("uname").arg("-r"))?;
    Ok([format!("Kubernetes: {}", kubernetes_version(workspace)?), format!("Linux: {}", linux.trim())])
}

fn kubernetes_version(workspace: &Workspace) -> Result<String> {
    let path = workspace.root.join("tests/cluster/kubernetes/go.mod");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let version =
        text.lines().find_map(|line| line.trim().trim_start_matches("require ").strip_prefix("k8s.io/kubernetes "));
    Ok(version.with_context(|| format!("{}: no k8s.io/kubernetes", path.display()))?.to_owned())
}

fn page(runs: &[Run], facts: &[String]) -> String {
    let mut lines = vec![INTRODUCTION.to_owned()];
    lines.extend(facts.iter().map(|fact| format!("- {fact}")));
    lines.push(String::new());
    lines.extend(runs.iter().map(line));
    let (load_balancers, services): (Vec<&Run>, Vec<&Run>) =
        runs.iter().partition(|run| run.title.ends_with(LOAD_BALANCERS));
    lines.extend([String::new(), markdown(&services)]);
    if !load_balancers.is_empty() {
        lines.extend([String::new(), LOAD_BALANCER_INTRODUCTION.to_owned(), markdown(&load_balancers)]);
    }
    lines.join("\n") + "\n"
}

fn line(run: &Run) -> String {
    let Run { title, date, version, results } = run;
    format!("- {title}: {} ({date}, at {version})", results.counts())
}

const INTRODUCTION: &str = "\
# Conformance

What Kubernetes' own end-to-end tests say of Services, each run once in each column. `cargo xtask e2e --matrix` writes this
page. A column is named by proxy, address families, CNI and socket mode.
";

const LOAD_BALANCER_INTRODUCTION: &str = "\
## Services of type LoadBalancer

Their addresses are of the nodes' network, given by `culvert controller` and announced by the agents in layer 2 ([LAYER2.md](LAYER2.md)). The tests run behind a
router, outside of that network. All but one run on six nodes. The one that switches session affinity with traffic policy Local wants answers of
several pods, which in layer 2 only the one node that answers can give, and of three pods on two nodes that one may have a single
pod: it runs on one node.
";

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_value_has_a_column_of_its_own() {
        let base = Options { proxy: Proxy::None, ..Options::usual("x".parse().unwrap()) };
        let titles: HashSet<String> = columns(&base).into_iter().map(|(title, _)| title).collect();
        assert_eq!(titles.len(), 7);
        for title in ["culvert 4 bridge all", "culvert 46 bridge all", "kube-proxy:nftables 4 bridge"] {
            assert!(titles.contains(title), "{title}");
        }
        let titles: Vec<_> = load_balancers(&base).into_iter().map(|(title, _)| title).collect();
        assert_eq!(titles.len(), 4);
        assert!(titles.iter().all(|title| title.ends_with(LOAD_BALANCERS)), "{titles:?}");
    }
}
