//! The task: it does what the [`Speaker`] says, when it is due.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use culvert_abi::AnnouncedCounters;
use culvert_announce::liveness::Said;
use culvert_announce::probe::packet::Mac;
use culvert_announce::probe::{Claim, Conflict, Standing};
use culvert_announce::speaker::{Action, Place, Speaker, Wanted};
use culvert_api::layer2::{self, Link, State};
use culvert_dataplane::Frames;
use culvert_dataplane::announced::{self, Announced, Before, Rival, Row};
use culvert_dataplane::kernel::KernelStore;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::Spoken;
use super::groups::Groups;
use super::orders::Orders;
use super::peers::Peers;
use super::random;
use crate::agent::core::now;
use crate::agent::samples;

/// How long the kernel answers without its agent.
const GRACE: Duration = Duration::from_mins(1);
/// How often rows are renewed, and compared with what they should be.
const RENEWAL: Duration = Duration::from_secs(5);
/// A conflict that goes on is told of in the log at most so often.
const QUIET: Duration = Duration::from_secs(10);
/// How long connections that stand go on through the node that had their address before.
const LINGER: Duration = Duration::from_mins(10);
/// When nothing is due.
const LATER: Duration = Duration::from_mins(10);

/// The one writer of the rows of announced addresses.
pub struct Task {
    rows: Announced<KernelStore>,
    rivals: mpsc::Receiver<Vec<Rival>>,
    frames: Frames,
    groups: Groups,
    speaker: Speaker,
    receiver: watch::Receiver<Option<Arc<Orders>>>,
    /// Those in force, and what is wanted, once that is known.
    orders: Arc<Orders>,
    wanted: Option<Wanted>,
    /// The node among the others; `None`: nodes do not hear each other, and what is wanted is announced.
    peers: Option<Peers>,
    echo: bool,
    asked: mpsc::Receiver<Question>,
    /// What is spoken for may be another thing than was told last.
    news: bool,
    /// Addresses that other nodes announced last, and their MACs.
    others: BTreeMap<IpAddr, Mac>,
    /// Addresses that came from another node: what stood then goes there.
    before: BTreeMap<IpAddr, Before>,
    spoken: watch::Sender<Option<Spoken>>,
    /// Who claimed an address last.
    claims: BTreeMap<Place, Claimed>,
    /// Announcements that were sent.
    sent: BTreeMap<Place, u64>,
}

/// Another host that claims an address.
#[derive(Clone, Copy, Debug)]
struct Claimed {
    mac: Mac,
    at: Duration,
    /// When it was last told of in the log.
    told: Duration,
}

/// Who speaks with the task.
pub struct Lines {
    /// Orders.
    pub receiver: watch::Receiver<Option<Arc<Orders>>>,
    /// Questions.
    pub asked: mpsc::Receiver<Question>,
    /// What is announced, once something was decided.
    pub spoken: watch::Sender<Option<Spoken>>,
}

/// A question how everything stands.
pub type Question = oneshot::Sender<io::Result<Standings>>;

/// The answer.
#[derive(Debug)]
pub struct Standings {
    /// Each address on each of its links.
    pub links: Vec<(IpAddr, Link)>,
    /// Whether a majority stands behind this node, if nodes hear each other.
    pub quorum: Option<bool>,
    /// The other nodes.
    pub nodes: Vec<layer2::Node>,
}

impl Task {
    /// Takes over the rows that are in force. `peers` makes the node's part among the others, from the addresses that the
    /// kernel answers for.
    pub fn new(
        rows: Announced<KernelStore>,
        rivals: RingBuf<MapData>,
        Lines { receiver, asked, spoken }: Lines,
        echo: bool,
        peers: impl FnOnce(BTreeSet<IpAddr>) -> io::Result<Option<Peers>>,
    ) -> io::Result<Self> {
        let now = now();
        let left = rows.rows()?.into_iter();
        let in_force = left.filter(|(_, row)| row.until.is_none_or(|until| until > now));
        let in_force: Vec<_> = in_force.collect();
        let before = in_force.iter().filter_map(|(place, row)| Some((place.address, row.before?))).collect();
        let left: BTreeMap<Place, bool> =
            in_force.into_iter().map(|(place, row)| (of_speaker(place), row.answers)).collect();
        let claims = left.iter().filter(|(_, answers)| **answers).map(|(place, _)| place.address).collect();
        let peers = peers(claims)?;
        Ok(Self {
            rows,
            rivals: samples::read("rivals", rivals, Rival::decode)?,
            frames: Frames::open()?,
            groups: Groups::default(),
            speaker: Speaker::new(left, random()?),
            receiver,
            orders: Arc::default(),
            wanted: None,
            peers,
            echo,
            asked,
            news: false,
            others: BTreeMap::new(),
            before,
            spoken,
            claims: BTreeMap::new(),
            sent: BTreeMap::new(),
        })
    }

    /// Runs until the main loop ends. The rows stay.
    pub async fn run(mut self) {
        let mut renewal = interval(RENEWAL);
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let wait = self.speaker.next().map_or(LATER, |next| next.saturating_sub(now()));
            let event = async {
                match &mut self.peers {
                    Some(peers) => peers.next().await,
                    None => std::future::pending().await,
                }
            };
            let actions = tokio::select! {
                changed = self.receiver.changed() => match changed {
                    Ok(()) => {
                        self.obey();
                        Vec::new()
                    }
                    Err(_) => return,
                },
                event = event => {
                    self.with_peers(|peers, claimed| peers.take(event, claimed));
                    Vec::new()
                }
                Some(rivals) = self.rivals.recv() => rivals.into_iter().flat_map(|rival| self.claimed(rival)).collect(),
                () = sleep_until(Instant::now() + wait) => self.speaker.tick(now()),
                Some(question) = self.asked.recv() => {
                    // Whoever asked may have gone.
                    let _ = question.send(self.standings());
                    continue;
                }
                _ = renewal.tick() => {
                    self.renew();
                    continue;
                }
            };
            self.act(actions);
            if std::mem::take(&mut self.news) {
                self.say();
                self.tell_peers();
            }
        }
    }

    /// Says which Services are spoken for, and on which links, if that is not what was said last.
    fn say(&self) {
        let mut spoken = Spoken::new();
        for (place, ..) in self.speaker.standings().filter(|(_, standing, _)| *standing == Standing::Speaking) {
            for service in self.orders.services.get(&place.address).into_iter().flatten() {
                spoken.entry(service.clone()).or_default().insert(self.name(place).to_owned());
            }
        }
        let spoken = self.receiver.borrow().is_some().then_some(spoken);
        self.spoken.send_if_modified(|last| {
            let changed = *last != spoken;
            *last = spoken;
            changed
        });
    }

    /// Takes new orders.
    fn obey(&mut self) {
        let Some(orders) = self.receiver.borrow_and_update().clone() else { return };
        self.orders = Arc::clone(&orders);
        self.news = true;
        if let Some(wanted) = &orders.wanted {
            self.wanted = Some(wanted.clone());
        }
        if self.peers.is_none() {
            self.speak(None);
            return;
        }
        if let (Some(peers), Some(wanted)) = (&mut self.peers, &orders.wanted) {
            peers.forget_all_but(&wanted.used);
        }
        let able = orders.wanted.as_ref().map(|wanted| {
            let able =
                wanted.addresses.iter().filter(|(_, links)| links.iter().any(|link| wanted.links.contains_key(link)));
            able.map(|(address, _)| *address).collect()
        });
        self.with_peers(|peers, claimed| peers.order(&orders.eligible, able, claimed));
        // Links may be others for what is claimed already.
        if let Some(claims) = self.peers.as_ref().map(|peers| peers.claims().clone()) {
            self.speak(Some(&claims));
        }
    }

    /// Does something with the peers, and speaks for what is claimed whenever that is something else.
    fn with_peers(&mut self, act: impl FnOnce(&mut Peers, &mut dyn FnMut(&BTreeSet<IpAddr>))) {
        let Some(mut peers) = self.peers.take() else { return };
        act(&mut peers, &mut |claims| self.speak(Some(claims)));
        if peers.have_news() {
            self.speaker.announced_by_others(peers.announced());
            self.others = peers.predecessors();
            let met: BTreeSet<Mac> = peers.macs().collect();
            self.speaker.meet(&met, now());
            self.claims.retain(|_, claimed| !met.contains(&claimed.mac));
            // Nobody goes on with what went through a node that is gone.
            let alive = peers.macs_alive();
            self.before.retain(|_, before| alive.contains(&Mac(before.mac)));
        }
        self.peers = Some(peers);
    }

    /// Tells the other nodes what they are to know; nothing before there were orders.
    fn tell_peers(&mut self) {
        if self.receiver.borrow().is_none() {
            return;
        }
        let said = Said { announced: self.speaker.speaks_for(), ..self.orders.said.clone() };
        self.with_peers(|peers, claimed| peers.say(said, claimed));
    }

    /// Speaks for what is wanted, as far as it is claimed if others have a say in it. Until it is known what is wanted, what was
    /// claimed goes on.
    fn speak(&mut self, claims: Option<&BTreeSet<IpAddr>>) {
        let actions = match (self.wanted.clone(), claims) {
            (Some(wanted), None) => self.speaker.want(&wanted, now()),
            (Some(mut wanted), Some(claims)) => {
                // What another node is to have is spoken for until it has it.
                let mut kept = self.speaker.rows();
                kept.retain(|place, _| !wanted.addresses.contains_key(&place.address));
                for Place { address, link } in kept.into_keys() {
                    wanted.addresses.entry(address).or_default().insert(link);
                }
                wanted.addresses.retain(|address, _| claims.contains(address));
                self.speaker.want(&wanted, now())
            }
            (None, Some(claims)) => self.speaker.give_up_all_but(claims),
            (None, None) => Vec::new(),
        };
        self.act(actions);
    }

    fn claimed(&mut self, Rival { place, mac, asks }: Rival) -> Vec<Action> {
        let claim = if asks { Claim::Asks } else { Claim::Uses };
        // This node's own links may be on one network.
        let own = self.wanted.iter().flat_map(|wanted| wanted.links.values()).map(|link| link.mac);
        let ours: BTreeSet<Mac> = own.chain(self.peers.iter().flat_map(Peers::macs)).collect();
        self.speaker.claimed(of_speaker(place), Mac(mac), claim, &ours, now())
    }

    fn standings(&self) -> io::Result<Standings> {
        let (counters, now) = (self.rows.counters()?, now());
        let ago = |then: Duration| now.saturating_sub(then).as_secs();
        let standings = self.speaker.standings().map(|(place, standing, since)| {
            let counted = counters.get(&of_rows(place)).copied().unwrap_or(AnnouncedCounters::zeroed());
            let AnnouncedCounters { requests, answers, refusals, echoes, rivals: conflicts, told: _ } = counted;
            let claim = self.claims.get(&place);
            let link = Link {
                interface: self.name(place).to_owned(),
                state: match standing {
                    Standing::Probing => State::Probing,
                    Standing::Taken => State::Taken,
                    Standing::Speaking => State::Announced,
                },
                since_seconds: ago(since),
                requests,
                answers,
                refusals,
                echoes,
                gratuitous: self.sent.get(&place).copied().unwrap_or(0),
                conflicts,
                rival: claim.map(|claim| layer2::Rival { mac: claim.mac.to_string(), seconds_ago: ago(claim.at) }),
            };
            (place.address, link)
        });
        let (quorum, nodes) = self.peers.as_ref().map(Peers::view).unzip();
        Ok(Standings { links: standings.collect(), quorum, nodes: nodes.unwrap_or_default() })
    }

    fn act(&mut self, actions: Vec<Action>) {
        self.news |= !actions.is_empty();
        for action in actions {
            match action {
                Action::Put { place, answers } => {
                    self.listen(place);
                    self.succeed(place.address);
                    self.put(place, answers);
                    let before = self.before.get(&place.address).map(|before| Mac(before.mac).to_string());
                    let (address, link) = (place.address, self.name(place));
                    tracing::info!(%address, link, answers, before, "announced in layer 2");
                }
                Action::Remove(place) => {
                    self.before.remove(&place.address);
                    self.claims.remove(&place);
                    self.sent.remove(&place);
                    self.remove(of_rows(place));
                    tracing::info!(address = %place.address, link = self.name(place), "no longer announced in layer 2");
                }
                Action::Send { place, packet } => {
                    if let Err(error) = self.frames.send(place.link, &packet.encode()) {
                        tracing::warn!(address = %place.address, link = self.name(place), %error, "a packet is not sent");
                    } else if packet.announces() {
                        *self.sent.entry(place).or_default() += 1;
                    }
                }
                Action::Tell { place, conflict } => self.tell(place, conflict),
            }
        }
    }

    /// Tells of a conflict. Whoever sends such packets without end does not fill the log.
    fn tell(&mut self, place: Place, Conflict { mac, gives_way }: Conflict) {
        let now = now();
        let last = self.claims.get(&place).map(|claim| claim.told);
        let quiet = last.is_some_and(|told| now.saturating_sub(told) < QUIET);
        let told = last.filter(|_| quiet).unwrap_or(now);
        self.claims.insert(place, Claimed { mac, at: now, told });
        if !quiet {
            let word = if gives_way { "it is not announced" } else { "it is defended" };
            let link = self.name(place);
            tracing::warn!(address = %place.address, link, %mac, "another host uses an address: {word}");
        }
    }

    /// Writes all rows anew, for a minute from now, and removes those that do not belong.
    fn renew(&mut self) {
        let wanted = self.speaker.rows();
        for (place, answers) in &wanted {
            self.listen(*place);
            self.put(*place, *answers);
        }
        match self.rows.rows() {
            Ok(rows) => {
                for place in rows.into_keys().filter(|place| !wanted.contains_key(&of_speaker(*place))) {
                    self.remove(place);
                }
            }
            Err(error) => tracing::error!(%error, "the rows of announced addresses cannot be read"),
        }
    }

    fn put(&mut self, place: Place, answers: bool) {
        let quorum = self.peers.is_some();
        let before = self.before.get(&place.address).copied().filter(|_| answers);
        let row = Row { answers, echo: answers && self.echo, quorum, until: Some(now() + GRACE), before };
        if let Err(error) = self.rows.put(of_rows(place), row) {
            tracing::error!(address = %place.address, %error, "an announced address cannot be written; it is tried again");
        }
    }

    fn remove(&mut self, place: announced::Place) {
        if let Err(error) = self.rows.remove(place) {
            tracing::error!(address = %place.address, %error, "an address cannot be removed; it is tried again");
        }
        if let IpAddr::V6(address) = place.address {
            let name = self.orders.names.get(&place.link).map(String::as_str);
            self.groups.leave(&self.frames, (place.link, name), address);
        }
    }

    /// Notes which node announced an address before this one, which begins to.
    fn succeed(&mut self, address: IpAddr) {
        if let Some(Mac(mac)) = self.others.remove(&address) {
            self.before.insert(address, Before { mac, until: now() + LINGER });
        }
    }

    /// Lets solicitations for an address in.
    fn listen(&mut self, place: Place) {
        if let (IpAddr::V6(address), Some(name)) = (place.address, self.orders.names.get(&place.link)) {
            self.groups.join(&self.frames, (place.link, name), address);
        }
    }

    fn name(&self, place: Place) -> &str {
        self.orders.names.get(&place.link).map_or("", String::as_str)
    }
}

fn of_speaker(announced::Place { address, link }: announced::Place) -> Place {
    Place { address, link }
}

fn of_rows(Place { address, link }: Place) -> announced::Place {
    announced::Place { address, link }
}
