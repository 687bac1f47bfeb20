//! Announcement of addresses in layer 2.
//!
//! ```text
//! main loop: Announcer ─ orders ─► task: Peers ─► Speaker ─► rows of ANNOUNCED: the kernel answers
//!   (Services, nodes, links)          ▲ │ ▲        ▲  ├────► frames: probes, announcements
//!          ▲                          │ │ │        │  └────► groups of IPv6 that links listen to
//!          └──── what is heard ───────│─┘ │        └─ RIVALS: another host
//!                       other nodes ◄─┘   └─ the kernel program: grants
//! ```
//!
//! What the choice of nodes gives to this one it claims; what a majority grants it speaks for.
//!
//! The task is the one writer of the rows. They hold for a minute and are renewed every five seconds: an agent that is
//! restarted finds them in force, and what one leaves that does not come back ends by itself.

mod drain;
mod groups;
mod orders;
pub mod peers;
mod task;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::path::PathBuf;

use aya::maps::{MapData, RingBuf};
use culvert_announce::choice;
use culvert_api::layer2::{Address, Layer2, Link};
use culvert_api::plan::ServiceKey;
use culvert_dataplane::announced::Announced;
use culvert_dataplane::kernel::KernelStore;
use culvert_dataplane::liveness::Maps;
use tokio::sync::{mpsc, oneshot, watch};

pub use self::orders::Announcer;
use self::peers::{Peers, Way, Witness};
use self::task::{Lines, Question, Task};
use super::core::{self, ask};
use super::views;

/// Questions that may wait for the task.
const QUESTIONS: usize = 16;

/// The Services that the node speaks for, with the names of the links.
pub type Spoken = BTreeMap<ServiceKey, BTreeSet<String>>;

/// How the task is asked.
#[derive(Clone, Debug)]
pub struct Desk(mpsc::Sender<Question>);

/// How addresses are announced.
pub struct Settings {
    /// The node's name.
    pub node: String,
    /// What the choice of nodes depends on.
    pub choice: choice::Settings,
    /// Announced addresses answer to ping.
    pub echo: bool,
    /// How nodes hear each other, if they do, and who decides between two halves.
    pub peers: Option<(peers::Settings, Way)>,
    /// The directory with what the next agent is to know.
    pub state: PathBuf,
}

/// Starts the task; `None` if it cannot run here, which is logged. `spoken` is told what is announced, once something was decided.
pub fn start(
    store: KernelStore,
    rivals: Option<RingBuf<MapData>>,
    settings: Settings,
    spoken: watch::Sender<Option<Spoken>>,
) -> Option<(Announcer, Desk)> {
    let Settings { node, choice, echo, peers, state } = settings;
    let (sender, orders) = watch::channel(None);
    let (questions, asked) = mpsc::channel(QUESTIONS);
    let (heard, hearing) = watch::channel(None);
    let hearing = peers.is_some().then_some(hearing);
    let rows = Announced::new(store.clone());
    let peers = |claims| {
        let start =
            |(settings, way)| Peers::new(&node, &settings, Maps::new(store), claims, heard, &state, Witness::new(way));
        peers.map(start).transpose()
    };
    match Task::new(rows, rivals?, Lines { receiver: orders, asked, spoken }, echo, peers) {
        Ok(task) => {
            tokio::spawn(task.run());
            Some((Announcer::new(choice, sender, hearing, drain::Mark::open(&state)), Desk(questions)))
        }
        Err(error) => {
            tracing::error!(%error, "no address can be announced in layer 2");
            None
        }
    }
}

/// `culvert l2`; `None` if the agent is about to end.
pub async fn view(
    questions: &mpsc::Sender<core::Question>,
    desk: Option<&Desk>,
) -> Option<Result<Layer2, views::Error>> {
    let Some(Desk(desk)) = desk else { return Some(Err(views::Error::NoLayer2)) };
    let (sender, answer) = oneshot::channel();
    desk.send(sender).await.ok()?;
    let standings = match answer.await.ok()? {
        Ok(standings) => standings,
        Err(error) => return Some(Err(error.into())),
    };
    let mut links: BTreeMap<IpAddr, Vec<Link>> = BTreeMap::new();
    for (address, link) in standings.links {
        links.entry(address).or_default().push(link);
    }
    let (node, owners) = ask(questions, |core| (core.node.clone(), core.announcements())).await?;
    let addresses = owners.into_iter().map(|(address, owner)| {
        let services = owner.services.iter().map(ToString::to_string).collect();
        let links = links.remove(&address).unwrap_or_default();
        Address { address, services, node: owner.node, reason: owner.reason, links }
    });
    let (quorum, nodes) = (standings.quorum, standings.nodes);
    Some(Ok(Layer2 { node, quorum, nodes, addresses: addresses.collect() }))
}

/// A number of the kernel's.
fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}
