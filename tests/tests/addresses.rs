//! Addresses out of a folder's pools: Services without a status get theirs, clients reach them, and they stay.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use culvert_tests::agent::{Agent, Options, SocketMode};
use culvert_tests::manifests::Service;
use culvert_tests::matrix::{PORT, TARGET};
use culvert_tests::place::{Family, Place};
use culvert_tests::process::eventually;
use culvert_tests::stage::{Cast, Scenery, answered};
use culvert_tests::topology::{Lab, PodLinks, external_ip};
use culvert_tests::traffic::{Ask, Outcome};
use serde_json::json;

const SOON: Duration = Duration::from_mins(1);

/// A pool with the lab's external addresses from one number to another.
fn pool(first: u8, last: u8) -> String {
    let ranges = Family::BOTH.map(|family| format!("{}-{}", external_ip(family, first), external_ip(family, last)));
    let metadata = json!({"name": "main", "namespace": "metallb-system"});
    json!({"apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool", "metadata": metadata, "spec": {"addresses": ranges}})
        .to_string()
}

fn service(name: &str, n: u8, pod: &Place) -> Service {
    Service::new(name, n).with("type", json!("LoadBalancer")).port("TCP", PORT, TARGET).ready("n1", pod)
}

/// Waits until Services have addresses of the pool: their numbers, in both families.
fn have(agent: &Agent, wanted: &[(&str, u8)]) -> Result<()> {
    eventually(&format!("Services have {wanted:?}"), SOON, || {
        let all = agent.cli_json("services")?;
        for (name, n) in wanted {
            let addresses = Family::BOTH.map(|family| external_ip(family, *n));
            let services = all["services"].as_array().context("services")?;
            let service = services.iter().find(|service| service["name"] == *name).context("it is not there")?;
            ensure!(service["addresses"] == json!(addresses) && service["pool"] == "main", "{service}");
        }
        ensure!(all["differences"] == json!([]), "{}", all["differences"]);
        Ok(Some(()))
    })
    .with_context(|| agent.log())
}

/// The client is answered at an address, and refused at a port that nobody serves there.
fn served(client: &Place, n: u8) -> Result<()> {
    for to in Family::BOTH.map(|family| external_ip(family, n)) {
        answered(&client.ask(&Ask::tcp((to, PORT)))?).with_context(|| to.to_string())?;
        let other = client.ask(&Ask::tcp((to, PORT + 1)))?;
        ensure!(other == Outcome::Refused, "{to}, a port that nobody serves: {other}");
    }
    Ok(())
}

/// An agent on a folder with a pool, from 100 to 109, and the Service `web`.
fn with_one_service(lab: &Lab, cast: &Cast) -> Result<Agent> {
    lab.manifests.write("pool", &pool(100, 109))?;
    lab.manifests.apply(&service("web", 1, &cast.a))?;
    let mut agent = Agent::start(lab, 0, &Options::new(SocketMode::All)?)?;
    agent.settle()?;
    Ok(agent)
}

fn first_error(agent: &Agent) -> Result<String> {
    Ok(agent.status()?["sources"][0]["errors"][0].as_str().unwrap_or_default().to_owned())
}

#[test]
fn a_service_gets_an_address_and_keeps_it() -> Result<()> {
    let scenery = Scenery::new(PodLinks::Routed)?;
    let (lab, cast) = (&scenery.lab, &scenery.cast);
    let mut agent = with_one_service(lab, cast)?;
    have(&agent, &[("web", 100)])?;
    served(&lab.client, 100)?;

    // By name it would have come first.
    lab.manifests.apply(&service("api", 2, &cast.a))?;
    have(&agent, &[("web", 100), ("api", 101)])?;
    served(&lab.client, 101)?;
    let anew = agent.plan()?;
    let services = anew["services"].as_array().context("services")?;
    let first = services.iter().find(|service| service["name"] == "api").context("api")?;
    ensure!(first["addresses"][0] == json!(external_ip(Family::V4, 100)), "{first}");

    // After a restart all are read together.
    agent.kill()?;
    served(&lab.client, 100)?;
    agent.restart(None)?;
    agent.ready()?;
    have(&agent, &[("web", 100), ("api", 101)])?;
    served(&lab.client, 100)?;

    // And while an agent that is started cannot read its pools.
    agent.kill()?;
    lab.manifests.write("pool", "spec: [\n")?;
    agent.restart(None)?;
    eventually("the broken file is told of", SOON, || Ok(first_error(&agent)?.contains("pool.yaml").then_some(())))?;
    have(&agent, &[("web", 100), ("api", 101)])?;
    served(&lab.client, 101)?;

    // A pool that has other addresses moves them, and what is left of the old ones is not served.
    lab.manifests.write("pool", &pool(101, 109))?;
    have(&agent, &[("web", 102), ("api", 101)])?;
    served(&lab.client, 102)?;
    let old: IpAddr = external_ip(Family::V4, 100);
    let left = lab.client.ask(&Ask::tcp((old, PORT)).patience(Duration::from_millis(200)))?;
    ensure!(left.answer().is_none(), "{old}: {left}");
    Ok(())
}

#[test]
fn a_damaged_record_is_told_of_and_addresses_are_given_anew() -> Result<()> {
    let scenery = Scenery::new(PodLinks::Routed)?;
    let (lab, cast) = (&scenery.lab, &scenery.cast);
    let mut agent = with_one_service(lab, cast)?;
    agent.kill()?;
    let record: PathBuf = agent.state().join("addresses.json");
    let text = std::fs::read(&record)?;
    std::fs::write(&record, &text[..text.len() / 2])?;
    agent.restart(None)?;
    agent.ready()?;
    let error = first_error(&agent)?;
    ensure!(error.contains("addresses.json: warning: is damaged: EOF"), "{error:?}");
    have(&agent, &[("web", 100)])?;
    ensure!(std::fs::read(&record)? == text, "it is not written anew");
    served(&lab.client, 100)
}
