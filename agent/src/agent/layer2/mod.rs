//! Announcement of addresses in layer 2.
//!
//! ```text
//! main loop: Announcer ─ orders ─► task: Speaker ─► rows of ANNOUNCED: the kernel answers
//!   (Services, nodes, links)         ▲       ├────► frames: probes, announcements
//!                                    │       └────► groups of IPv6 that links listen to
//!              RIVALS: another host ─┘
//! ```
//!
//! The task is the one writer of the rows. They hold for a minute and are renewed every five seconds: an agent that is
//! restarted finds them in force, and what one leaves that does not come back ends by itself.

mod groups;
mod orders;
mod task;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use aya::maps::{MapData, RingBuf};
use culvert_announce::choice::Settings;
use culvert_api::layer2::{Address, Layer2, Link};
use culvert_api::plan::ServiceKey;
use culvert_dataplane::announced::Announced;
use culvert_dataplane::kernel::KernelStore;
use tokio::sync::{mpsc, oneshot, watch};

pub use self::orders::Announcer;
use self::task::{Question, Task};
use super::core::{self, ask};
use super::views;

/// Questions that may wait for the task.
const QUESTIONS: usize = 16;

/// The Services that the node speaks for, with the names of the links.
pub type Spoken = BTreeMap<ServiceKey, BTreeSet<String>>;

/// How the task is asked.
#[derive(Clone, Debug)]
pub struct Desk(mpsc::Sender<Question>);

/// Starts the task; `None` if it cannot run here, which is logged. `echo`: announced addresses answer to ping.
/// `spoken` is told what is announced, once something was decided.
pub fn start(
    store: KernelStore,
    rivals: Option<RingBuf<MapData>>,
    settings: Settings,
    echo: bool,
    spoken: watch::Sender<Option<Spoken>>,
) -> Option<(Announcer, Desk)> {
    let (sender, orders) = watch::channel(None);
    let (questions, asked) = mpsc::channel(QUESTIONS);
    match Task::new(Announced::new(store), rivals?, orders, asked, echo, spoken) {
        Ok(task) => {
            tokio::spawn(task.run());
            Some((Announcer::new(settings, sender), Desk(questions)))
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
    for (address, link) in standings {
        links.entry(address).or_default().push(link);
    }
    let (node, owners) = ask(questions, |core| (core.node.clone(), core.announcements())).await?;
    let addresses = owners.into_iter().map(|(address, owner)| {
        let services = owner.services.iter().map(ToString::to_string).collect();
        let links = links.remove(&address).unwrap_or_default();
        Address { address, services, node: owner.node, reason: owner.reason, links }
    });
    Some(Ok(Layer2 { node, addresses: addresses.collect() }))
}
