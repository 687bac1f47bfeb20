//! What the demo shows.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::Write as _;

use comfy_table::{Attribute, Cell, CellAlignment, Color, ContentArrangement, Table, presets};

use super::load::Chapter;
use super::ways::Way;
use crate::agent::Cluster;
use crate::traffic::load::Tally;

/// A line.
pub fn say(line: &str) {
    // A reader that went away (`| head`) is no reason to stop.
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// Who is where.
pub fn picture() {
    say(PICTURE);
}

/// The table of ways in; whether all held.
pub fn ways(ways: &[Way]) -> bool {
    let mut table = table(&["", "Service", "Asked by", "Address", "", "Answered by", "Lost"]);
    for way in ways {
        let mut answered = counts(&way.answered);
        if !way.behind.is_empty() {
            answered = format!("{answered}\nbehind them {}", counts(&way.behind));
        }
        table.add_row(vec![
            mark(way.held()),
            Cell::new(way.service),
            Cell::new(&way.from),
            Cell::new(way.kind),
            Cell::new(way.to),
            Cell::new(answered),
            lost(way.lost(), &way.failures),
        ]);
    }
    let sent: u64 = ways.iter().map(|way| way.sent).sum();
    say(&format!("\nEvery way in: {sent} requests, each on a socket of its own\n{table}"));
    ways.iter().all(Way::held)
}

/// The table of the load, chapter by chapter; whether nothing was lost.
pub fn chapters(names: &[&str], chapters: &[Chapter]) -> bool {
    let mut table = table(&["", "Under load", "Sent", "Slowest", "Answered by", "Lost"]);
    for (name, chapter) in names.iter().zip(chapters) {
        table.add_row(vec![Cell::new(""), Cell::new(name).add_attribute(Attribute::Bold)]);
        for (kind, tally) in chapter {
            table.add_row(vec![
                mark(tally.clean()),
                Cell::new(format!("  {kind}")),
                Cell::new(tally.sent).set_alignment(CellAlignment::Right),
                Cell::new(format!("{:.1} ms", tally.slowest.as_secs_f64() * 1e3)).set_alignment(CellAlignment::Right),
                Cell::new(counts(&tally.servers)),
                lost(tally.lost(), &tally.failures),
            ]);
        }
    }
    say(&format!("\nA backend goes, an agent dies\n{table}"));
    chapters.iter().flat_map(BTreeMap::values).all(Tally::clean)
}

/// One more thing that must hold.
pub fn check(what: &str, held: bool) -> bool {
    say(&format!("  {} {what}", if held { "✓" } else { "✗" }));
    held
}

/// The last line.
pub fn verdict(held: bool) {
    say(if held { "\nAll of it held: nothing was lost." } else { "\nNot all of it held: see ✗ above." });
}

/// What to try while everything is left running.
pub fn look_around(cluster: &Cluster) {
    let (prefix, dir) = (cluster.lab.prefix(), cluster.lab.dir().display());
    let binary = cluster.agents[0].binary().display();
    say(&format!(
        "
Everything runs on. Look around:
  ip netns exec {prefix}-client curl http://203.0.113.80/
  ip netns exec {prefix}-client curl 'http://[2001:db8:ee::80]/'
  ip netns exec {prefix}-client dig +short @203.0.113.53 whoami.culvert.test TXT
  {binary} status   --api-socket {dir}/n1-run/api.sock
  {binary} services --api-socket {dir}/n1-run/api.sock
  {binary} flows    --api-socket {dir}/n1-run/api.sock
Edit the manifests, and ask again:  {dir}/manifests
Logs of agents and servers:         {dir}/logs
And to end it:                      cargo run -q -p culvert-tests --bin culvert-demo -- --remove"
    ));
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().map(|title| Cell::new(title).add_attribute(Attribute::Bold)));
    table
}

fn mark(held: bool) -> Cell {
    let (sign, colour) = if held { ("✓", Color::Green) } else { ("✗", Color::Red) };
    Cell::new(sign).fg(colour)
}

fn lost(lost: u64, failures: &BTreeMap<String, u64>) -> Cell {
    if lost == 0 && failures.is_empty() {
        return Cell::new("0").set_alignment(CellAlignment::Right);
    }
    Cell::new(format!("{lost}: {}", counts(failures))).fg(Color::Red)
}

/// `a 10 · b 12`.
fn counts<K: Display>(counts: &BTreeMap<K, u64>) -> String {
    counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(" · ")
}

const PICTURE: &str = "
  client ── router ──┬── n1  web-1 web-2 edge-1 dns-1 etcd-1 shell-1
                     └── n2  web-3 edge-2 dns-2 etcd-2 etcd-3 shell-2

  web is NGINX; edge is HAProxy, which finds web by its ClusterIP; dns is dnsmasq; shells only ask.";
