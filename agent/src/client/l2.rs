//! `culvert l2`.

use anyhow::Result;
use culvert_api::layer2::{Address, Layer2, Link, State};

use super::{block_on, request, show, span};
use crate::cli::L2Args;
use crate::output::{Done, lines, table};

/// Runs the command.
pub fn run(args: &L2Args) -> Result<Done> {
    let answer: Layer2 = block_on(request::get(&args.api.api_socket, "/v1/l2", &()))?;
    show(&answer, args.output.output, text)?;
    let contested =
        |address: &Address| address.links.iter().any(|link| link.state == State::Taken || link.rival.is_some());
    let silent = answer.quorum == Some(false);
    let unwell = silent || answer.addresses.iter().any(|address| address.node.is_none() || contested(address));
    Ok(if unwell { Done::Unwell } else { Done::Well })
}

fn text(answer: &Layer2, wide: bool) -> String {
    let mut headings = vec!["ADDRESS", "SERVICES", "NODE", "LINK", "STATE", "SINCE", "CONFLICT", "WHY"];
    if wide {
        headings.extend(["REQUESTS", "ANSWERS", "REFUSALS", "PINGS", "GRATUITOUS", "CONFLICTS"]);
    }
    let mut rows = table(headings);
    for Address { address, services, node, reason, links } in &answer.addresses {
        let node = node.clone().unwrap_or_else(|| "nobody".to_owned());
        let mut first = [address.to_string(), services.join("\n"), node];
        let mut reason = reason.clone();
        // An address without a link here is a row, too.
        for link in links.iter().map(Some).chain(links.is_empty().then_some(None)) {
            let [address, services, node] = std::mem::take(&mut first);
            let [name, state, since, rival] = link.map(words).unwrap_or_default();
            let mut row = vec![address, services, node, name, state, since, rival, std::mem::take(&mut reason)];
            if wide {
                row.extend(link.map(counts).unwrap_or_default());
            }
            rows.add_row(row);
        }
    }
    let mut text = lines(&rows);
    if !answer.nodes.is_empty() {
        text = format!("{}\n{text}", nodes(answer));
    }
    text
}

/// Who is heard, and whether the node may speak.
fn nodes(answer: &Layer2) -> String {
    let mut rows = table(vec!["NODE", "HEARD", "ADDRESSES", "STATE"]);
    for node in &answer.nodes {
        let heard = node.heard_milliseconds_ago.map_or_else(|| "never".to_owned(), |ago| format!("{ago} ms ago"));
        let states = [(!node.alive, "not heard"), (node.held_down, "held down"), (node.drained, "drained")];
        let states: Vec<&str> = states.into_iter().filter(|(is, _)| *is).map(|(_, word)| word).collect();
        let state = if states.is_empty() { "alive".to_owned() } else { states.join(", ") };
        rows.add_row(vec![node.name.clone(), heard, node.addresses.to_string(), state]);
    }
    let quorum = match answer.quorum {
        Some(false) => "no majority stands behind this node: it is silent\n",
        _ => "",
    };
    format!("{}{quorum}", lines(&rows))
}

/// Name, state, since when, and who else claims the address.
fn words(link: &Link) -> [String; 4] {
    let state = match link.state {
        State::Probing => "probing",
        State::Taken => "taken",
        State::Announced => "announced",
    };
    let rival = link.rival.as_ref().map(|rival| format!("{} {} ago", rival.mac, span(rival.seconds_ago)));
    [link.interface.clone(), state.to_owned(), span(link.since_seconds), rival.unwrap_or_default()]
}

fn counts(link: &Link) -> [String; 6] {
    let Link { requests, answers, refusals, echoes, gratuitous, conflicts, .. } = link;
    [requests, answers, refusals, echoes, gratuitous, conflicts].map(ToString::to_string)
}

#[cfg(test)]
mod tests {
    use culvert_api::layer2::{Node, Rival};

    use super::*;

    #[test]
    fn a_row_for_each_link_and_for_what_nobody_announces() {
        let link = |interface: &str, state, rival| Link {
            interface: interface.to_owned(),
            state,
            since_seconds: 61,
            requests: 7,
            answers: 6,
            refusals: 1,
            echoes: 2,
            gratuitous: 10,
            conflicts: 3,
            rival,
        };
        let rival = Rival { mac: "02:00:00:00:00:09".to_owned(), seconds_ago: 5 };
        let address = |address: &str, node: Option<&str>, reason: &str, links| Address {
            address: address.parse().unwrap(),
            services: vec!["shop/web".to_owned()],
            node: node.map(str::to_owned),
            reason: reason.to_owned(),
            links,
        };
        let links = vec![link("eth0", State::Announced, None), link("eth1", State::Taken, Some(rival))];
        let answer = Layer2 {
            node: "n1".to_owned(),
            quorum: None,
            nodes: Vec::new(),
            addresses: vec![
                address("192.0.2.1", Some("n1"), "the only node", links),
                address("192.0.2.2", None, "no ready endpoint on any node", Vec::new()),
            ],
        };
        let text = text(&answer, true);
        let rows: Vec<String> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(rows[1], "192.0.2.1 shop/web n1 eth0 announced 1m1s the only node 7 6 1 2 10 3");
        assert_eq!(rows[2], "eth1 taken 1m1s 02:00:00:00:00:09 5s ago 7 6 1 2 10 3");
        assert_eq!(rows[3], "192.0.2.2 shop/web nobody no ready endpoint on any node");
    }

    #[test]
    fn who_is_heard() {
        let node = |name: &str, alive, held_down| Node {
            name: name.to_owned(),
            alive,
            heard_milliseconds_ago: alive.then_some(90),
            held_down,
            drained: false,
            addresses: 2,
        };
        let nodes = vec![node("n2", true, true), node("n3", false, false), node("n4", true, false)];
        let answer = Layer2 { node: "n1".to_owned(), quorum: Some(false), nodes, addresses: Vec::new() };
        let text = text(&answer, false);
        let rows: Vec<String> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        let want = ["n2 90 ms ago 2 held down", "n3 never 2 not heard", "n4 90 ms ago 2 alive"];
        assert_eq!(rows[1..4], want);
        assert_eq!(rows[4], "no majority stands behind this node: it is silent");
    }
}
