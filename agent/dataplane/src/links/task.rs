//! The task that keeps the hooks: reads the network when netlink says that it changed, and looks each second whether
//! the hooks are still there.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use netlink_packet_route::RouteNetlinkMessage;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    Direction, Hooks, Patterns, Role, Wanted,
    classify::{Knowledge, classify, local_addresses},
    hooks::Method,
    state::{Network, concerns},
};
use crate::{
    Error,
    kernel::KernelStore,
    netlink::{Change, Monitor, Netlink},
    object::Object,
    pins::Pins,
    sockets::Sockets,
};

/// `RTNLGRP_*` of links, filters, addresses and routes.
const GROUPS: [u32; 6] = [1, 4, 5, 7, 9, 11];
/// A hook that somebody removed is back after at most this time.
const LOOK: Duration = Duration::from_millis(800);

/// Keeps the hooks of links and sockets. [`Links::run`] is the task.
#[derive(Debug)]
pub struct Links {
    pub(crate) object: Arc<Object>,
    pub(crate) store: KernelStore,
    pub(crate) pins: Pins,
    pub(crate) hooks: Hooks,
    pub(crate) sockets: Sockets,
    /// `--pod-links`.
    pub(crate) pods: Patterns,
    /// `--node-links`.
    pub(crate) nodes: Patterns,
    /// What each link was hooked as.
    pub(crate) roles: BTreeMap<u32, Role>,
    pub(crate) node_addresses: watch::Receiver<Option<BTreeSet<IpAddr>>>,
    pub(crate) report: watch::Sender<Arc<Report>>,
}

/// What the task knows, for the model and for `culvert status`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Addresses that the node's links carry.
    pub addresses: BTreeSet<IpAddr>,
    /// The hooked links.
    pub links: Vec<Hooked>,
    /// The socket programs that are attached.
    pub sockets: Vec<&'static str>,
    /// Ids of our own programs.
    pub own: BTreeSet<u32>,
    /// What could not be done; it is tried again.
    pub problems: Vec<String>,
}

/// A hooked link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hooked {
    /// ifindex.
    pub index: u32,
    /// What it has.
    pub wanted: Wanted,
    /// Ids of all programs at ingress, others' too, in the order in which they run.
    pub ingress: Vec<u32>,
    /// Likewise at egress.
    pub egress: Vec<u32>,
}

impl Links {
    /// Watches and mends until the future is dropped or netlink fails; the hooks stay either way.
    pub async fn run(mut self) -> Result<(), Error> {
        let failed = Error::netlink("notifications");
        let monitor = match Monitor::join(&GROUPS) {
            Ok(monitor) => monitor,
            Err(error) => return Err(failed(error)),
        };
        let netlink = Netlink::route().map_err(Error::netlink("socket"))?;
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The monitor listens already: what changes from here on is read again.
        self.refresh(&netlink)?;
        let mut mended = Instant::now();
        loop {
            let due = tokio::select! {
                change = monitor.next() => match change.map_err(Error::netlink("notifications"))? {
                    Change::Overrun => true,
                    Change::Messages(messages) => messages.iter().any(|message| self.concerned(message)),
                },
                Ok(()) = self.node_addresses.changed() => true,
                _ = ticks.tick() => self.look(mended),
            };
            if due {
                self.refresh(&netlink)?;
                mended = Instant::now();
            }
        }
    }

    fn concerned(&self, message: &RouteNetlinkMessage) -> bool {
        let filters =
            matches!(message, RouteNetlinkMessage::DelTrafficFilter(_) | RouteNetlinkMessage::DelQueueDiscipline(_));
        concerns(message) || filters && self.hooks.method() == Method::Clsact
    }

    /// Whether something is to be mended. Filters announce their removal, tcx and cgroup links do not. What failed
    /// the last time is tried again once in a while.
    fn look(&self, mended: Instant) -> bool {
        const RETRY: Duration = Duration::from_secs(5);
        let broken = self.hooks.method() == Method::Tcx && !self.hooks.intact() || !self.sockets.intact(&self.pins);
        broken || !self.report.borrow().problems.is_empty() && mended.elapsed() > RETRY
    }

    fn refresh(&mut self, netlink: &Netlink) -> Result<(), Error> {
        let network = Network::read(netlink).map_err(Error::netlink("links"))?;
        let node_addresses = self.node_addresses.borrow_and_update().clone();
        let wanted = classify(
            &network,
            Knowledge {
                pod_links: &self.pods,
                node_links: &self.nodes,
                node_addresses: node_addresses.as_ref(),
                hooked: &self.roles,
            },
        );
        let mut errors = self.hooks.apply(&self.object, &mut self.store, &wanted);
        if !self.sockets.intact(&self.pins) {
            tracing::warn!("socket hooks were removed by somebody else; they are put back");
            errors.extend(self.sockets.attach(&self.object, &self.pins).err());
        }
        for error in &errors {
            tracing::warn!(%error, "a hook could not be set");
        }
        self.roles = wanted.iter().map(|(index, wanted)| (*index, wanted.role)).collect();
        let programs = |direction, index| self.hooks.programs(direction, index).unwrap_or_default();
        let links = wanted.into_iter().map(|(index, wanted)| Hooked {
            index,
            wanted,
            ingress: programs(Direction::Ingress, index),
            egress: programs(Direction::Egress, index),
        });
        let report = Report {
            addresses: local_addresses(&network),
            links: links.collect(),
            sockets: self.sockets.attached(&self.pins),
            own: self.object.ids(),
            problems: errors.iter().map(ToString::to_string).collect(),
        };
        self.report.send_if_modified(|old| {
            let changed = **old != report;
            if changed {
                *old = Arc::new(report);
            }
            changed
        });
        Ok(())
    }
}
