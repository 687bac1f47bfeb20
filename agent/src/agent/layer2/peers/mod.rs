//! The node among the others: beats and letters, what is heard, and which claims are in force.
//!
//! ```text
//! orders: nodes that count, what is wanted, what is to be said ─►┐              ┌─► beats, letters ─► other nodes
//! letters, echoes of other nodes ───────────────────────────────►├─ liveness ───┤─► LIVENESS: the kernel program
//! GRANTS: what the kernel program noted ────────────────────────►┘   ::Agent    ├─► claims in force ─► rows
//!                                                                               └─► Heard ─► the choice of nodes
//! ```

mod book;
mod gateway;
mod row;
mod witness;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use culvert_announce::hold::{self, Hold, Standing};
use culvert_announce::liveness::wire::{Inbox, Key, Message, node_id};
use culvert_announce::liveness::{Action, Agent, Kernel, Letter, NodeId, Said, Time, Times};
use culvert_announce::probe::packet::Mac;
use culvert_api::layer2;
use culvert_dataplane::kernel::KernelStore;
use culvert_dataplane::liveness::{Liveness, Maps};
use nix::time::ClockId;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use self::book::Book;
pub use self::witness::{Way, Witness};
use crate::announcements::{Heard, Peer};

/// While claims wait for grants, which come to the kernel alone, it is asked so often.
const POLL: Duration = Duration::from_millis(5);
/// How late the kernel may hear that its agent lives.
const PULSE: Duration = Duration::from_secs(1);
/// From one write of the row to the next: no program reads it for so long.
const PAUSE: Duration = Duration::from_millis(1);
/// How long a weak witness does not count after another node has claimed the same: so long that one of them gives it up.
const CONTRADICTION: Duration = Duration::from_secs(1);
/// How long a node that starts waits for the others before it decides without those that it does not hear. What it claims already
/// goes on meanwhile.
const SETTLING: Duration = Duration::from_secs(2);
/// A datagram is no longer.
const DATAGRAM: usize = 65_535;

/// What the other nodes share with this one.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The key of all messages.
    pub key: Key,
    /// The UDP port of all nodes.
    pub port: u16,
}

/// The node's part in deciding who may speak.
pub struct Peers {
    id: NodeId,
    key: Key,
    port: u16,
    times: Times,
    socket: UdpSocket,
    maps: Maps<KernelStore>,
    agent: Agent,
    kernel: Kernel,
    /// What the kernel program was told last, and when.
    written: Option<Liveness>,
    written_at: Time,
    /// Whether it was told all that this node stands on.
    told: bool,
    in_force: InForce,
    started: Time,
    book: Book,
    inbox: Inbox,
    /// Number of the last letter.
    seq: u64,
    hold: Hold<NodeId>,
    heard: watch::Sender<Option<Arc<Heard>>>,
    /// Everything that the others said, as they said it last.
    said: BTreeMap<NodeId, Arc<Said>>,
    news: bool,
    /// Those that were heard when that was told last.
    alive: BTreeSet<NodeId>,
    /// Which node announced an address last.
    announcers: BTreeMap<IpAddr, NodeId>,
    witness: Witness,
    /// Until then a witness that both sides may have does not count: another node has said that it claims the same.
    contradicted: Time,
    /// What went wrong last, so that it is told once.
    problem: Option<String>,
    /// Where datagrams are received.
    buffer: Vec<u8>,
}

/// Something has come, or it is time.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// A datagram of this length, which lies in the buffer.
    Datagram(usize),
    /// [`Peers::tick`] is due.
    Time,
}

impl Peers {
    /// Takes part, with what an earlier agent left in the kernel: the row, and addresses that it answers for.
    ///
    /// # Errors
    /// The port is taken, or a map cannot be read.
    pub fn new(
        name: &str,
        settings: &Settings,
        maps: Maps<KernelStore>,
        claims: BTreeSet<IpAddr>,
        heard: watch::Sender<Option<Arc<Heard>>>,
        state: &Path,
        witness: Witness,
    ) -> io::Result<Self> {
        let (id, times, now) = (node_id(name), Times::default(), clock());
        let held = row::held(maps.read()?.filter(|row| row.id == id), claims)?;
        let kernel = Kernel::running(id, held, times);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seq = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
        let nodes = kernel.electorate().parts().0.clone();
        let agent = Agent::new(&kernel, id, nodes, seq, times, now);
        let in_force = InForce(kernel.claims().clone());
        Ok(Self {
            id,
            key: settings.key.clone(),
            port: settings.port,
            times,
            socket: bind(settings.port)?,
            maps,
            agent,
            kernel,
            written: None,
            written_at: Time::ZERO,
            told: true,
            in_force,
            started: now,
            book: Book::open(state),
            inbox: Inbox::default(),
            seq,
            hold: Hold::new(hold::Times::default()),
            heard,
            said: BTreeMap::new(),
            news: false,
            alive: BTreeSet::new(),
            announcers: BTreeMap::new(),
            witness,
            contradicted: Time::ZERO,
            problem: None,
            buffer: vec![0; DATAGRAM],
        })
    }

    /// Waits for what is next.
    pub async fn next(&mut self) -> Event {
        let now = clock();
        let mut due = self.agent.next();
        if self.agent.waits(&self.kernel, now) {
            due = due.min(now + POLL);
        }
        if let Some(change) = self.hold.next_change(now) {
            due = due.min(change);
        }
        tokio::select! {
            received = self.socket.recv(&mut self.buffer) => match received {
                Ok(length) => Event::Datagram(length),
                // Word of an earlier message that did not arrive, such as "port unreachable".
                Err(_) => Event::Time,
            },
            () = self.witness.changed() => Event::Time,
            () = sleep_until(Instant::now() + due.saturating_sub(now)) => Event::Time,
        }
    }

    /// Does what an event asks for. `obey` is told the addresses that the kernel may answer for, whenever they are others.
    pub fn take(&mut self, event: Event, obey: &mut dyn FnMut(&BTreeSet<IpAddr>)) {
        if let Event::Datagram(length) = event {
            match Message::decode(self.buffer.get(..length).unwrap_or_default(), &self.key) {
                // The most of them; what follows from it can wait for the next beat.
                Ok(Message::Echo(echo)) => return self.agent.echo(&echo, clock()),
                Ok(Message::Letter { from, to, seq, letter }) if to == self.id && self.inbox.accept(from, seq) => {
                    self.refresh();
                    let actions = self.read(from, letter);
                    self.perform(actions, obey);
                }
                // What is for another node, or came before; and a beat, which the kernel program would have taken: it is not hooked yet.
                Ok(_) => return,
                Err(error) => return self.complain(format!("a message of another node is refused: {error}")),
            }
        }
        self.tick(obey);
    }

    /// Takes orders: the nodes that count with their addresses, and what this one wants; `None`: what is claimed goes on.
    pub fn order(
        &mut self,
        eligible: &BTreeMap<String, Vec<IpAddr>>,
        wanted: Option<BTreeSet<IpAddr>>,
        obey: &mut dyn FnMut(&BTreeSet<IpAddr>),
    ) {
        let now = clock();
        self.book.write(eligible);
        let alone = eligible.is_empty().then_some(self.id);
        let nodes = eligible.keys().map(|name| node_id(name)).chain(alone).collect();
        self.agent.elect(nodes, now);
        if let Some(wanted) = wanted {
            self.agent.want(wanted);
        }
        self.tick(obey);
    }

    /// Says something of this node to the others, if it is news to them.
    pub fn say(&mut self, said: Said, obey: &mut dyn FnMut(&BTreeSet<IpAddr>)) {
        self.announcers.extend(said.announced.iter().map(|address| (*address, self.id)));
        let actions = self.agent.say(said, clock());
        self.perform(actions, obey);
    }

    /// Addresses that the kernel may answer for.
    pub fn claims(&self) -> &BTreeSet<IpAddr> {
        &self.in_force.0
    }

    /// Whether a majority stands behind this node, and the others.
    pub fn view(&self) -> (bool, Vec<layer2::Node>) {
        let now = clock();
        let (alive, holders) = (self.agent.alive(now), self.agent.holders());
        let others = self.agent.electorate().nodes(now).into_iter().filter(|id| *id != self.id);
        let node = |id: NodeId| {
            let heard = self.agent.heard(id).map(|heard| now.saturating_sub(heard));
            layer2::Node {
                name: self.book.name(id).to_owned(),
                alive: alive.contains(&id),
                heard_milliseconds_ago: heard.and_then(|ago| u64::try_from(ago.as_millis()).ok()),
                held_down: matches!(self.hold.standing(&id, now), Standing::Held(_)),
                drained: self.said.get(&id).is_some_and(|said| said.drained),
                addresses: holders.values().filter(|holder| **holder == id).count() as u64,
            }
        };
        let mut nodes: Vec<_> = others.map(node).collect();
        nodes.sort_by(|one, other| one.name.cmp(&other.name));
        (self.kernel.is_quorate(self.kernel.version(), now), nodes)
    }

    /// MACs of all nodes that were ever heard.
    pub fn macs(&self) -> impl Iterator<Item = Mac> {
        self.said.values().flat_map(|said| said.links.values()).map(|link| link.mac)
    }

    /// Addresses that another node which lives announced last, with that node's link address.
    pub fn predecessors(&self) -> BTreeMap<IpAddr, Mac> {
        let alive = self.agent.alive(clock());
        let by_alive = self.announcers.iter().filter(|(_, id)| alive.contains(id));
        by_alive.filter_map(|(address, id)| Some((*address, facing(self.said.get(id)?, *address)?))).collect()
    }

    /// Whether a node has said something else, came or went since this was asked last.
    pub fn have_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }

    /// MACs of the nodes that are heard.
    pub fn macs_alive(&self) -> BTreeSet<Mac> {
        self.agent.said(clock()).flat_map(|(_, said)| said.links.values()).map(|link| link.mac).collect()
    }

    /// Addresses that other nodes announce, or did when they were heard last.
    pub fn announced(&self) -> impl Iterator<Item = IpAddr> {
        self.said.values().flat_map(|said| &said.announced).copied()
    }

    /// Only these addresses are any Service's: what nodes announced that are gone is the cluster's no more.
    pub fn forget_all_but(&mut self, used: &BTreeSet<IpAddr>) {
        forget(&mut self.said, &self.alive, used);
    }

    fn tick(&mut self, obey: &mut dyn FnMut(&BTreeSet<IpAddr>)) {
        self.refresh();
        let now = clock();
        self.kernel.agent_lives(now);
        self.ask_witness(now);
        let actions = self.agent.tick(&self.kernel, now);
        self.perform(actions, obey);
        let was_told = self.told;
        self.tell_kernel(false);
        if self.told && !was_told {
            self.enforce(obey);
        }
        self.publish(now);
    }

    /// Reads what was granted.
    fn refresh(&mut self) {
        match self.maps.grants() {
            Ok(grants) => self.kernel.note(row::grants(grants)),
            Err(error) => self.complain(format!("grants cannot be read: {error}")),
        }
    }

    fn read(&mut self, from: NodeId, letter: Letter) -> Vec<Action> {
        let now = clock();
        if matches!(&letter, Letter::Refusal { addresses, .. } if !addresses.is_empty()) {
            self.contradicted = now + CONTRADICTION;
            self.ask_witness(now);
        }
        self.agent.letter(from, letter, &self.kernel, now)
    }

    fn perform(&mut self, actions: Vec<Action>, obey: &mut dyn FnMut(&BTreeSet<IpAddr>)) {
        for action in actions {
            match action {
                Action::Beat(beat) => self.send(beat.to, &Message::Beat(beat)),
                Action::Letter { to, letter } => {
                    self.seq += 1;
                    self.send(to, &Message::Letter { from: self.id, to, seq: self.seq, letter });
                }
                Action::Activate { version, claims } => {
                    // No row goes before its version: an earlier grant does not cover it.
                    self.kernel.activate(version, claims);
                    self.tell_kernel(true);
                    self.enforce(obey);
                }
                Action::Retire(addresses) => {
                    self.kernel.retire(&addresses);
                    self.enforce(obey);
                }
            }
        }
    }

    fn enforce(&mut self, obey: &mut dyn FnMut(&BTreeSet<IpAddr>)) {
        self.in_force.follow(self.kernel.claims(), self.told);
        obey(&self.in_force.0);
    }

    fn send(&mut self, to: NodeId, message: &Message) {
        let Some(address) = self.book.address(to) else { return };
        let sent = message.encode(&self.key).map_err(io::Error::other).and_then(|bytes| {
            let address = of_socket(&self.socket, SocketAddr::new(address, self.port));
            self.socket.try_send_to(&bytes, address)
        });
        if let Err(error) = sent {
            self.complain(format!("a message to node {} is not sent: {error}", self.book.name(to)));
        }
    }

    /// Writes the row, if the kernel is to hear something else or has not heard for a while.
    fn tell_kernel(&mut self, at_once: bool) {
        self.kernel.set_electorate(self.agent.electorate().clone());
        let row = row::of(self.id, &self.kernel, self.times, self.key.states());
        let last = self.written.as_ref();
        let is_news = last.is_none_or(|last| Liveness { agent_until: row.agent_until, ..last.clone() } != row);
        let now = clock();
        if !at_once && !is_news && self.told && now < self.written_at + PULSE {
            return;
        }
        if let Some(wait) = (self.written_at + PAUSE).checked_sub(now).filter(|wait| !wait.is_zero()) {
            std::thread::sleep(wait);
        }
        let written = self.maps.write(&row);
        self.told = written.is_ok();
        match written {
            Ok(()) => self.written = Some(row),
            Err(error) => self.complain(format!("the kernel cannot be told who counts: {error}")),
        }
        self.written_at = clock();
    }

    fn ask_witness(&mut self, now: Time) {
        let counts = !self.witness.is_weak() || now >= self.contradicted;
        if counts && self.kernel.needs_witness(now) {
            self.kernel.set_witness(self.witness.until());
            self.witness.ask(true);
        } else if self.witness.is_asked() {
            // First this node does without, then it lets go.
            self.kernel.set_witness(now);
            self.tell_kernel(true);
            if self.told {
                self.witness.ask(false);
            }
        }
    }

    /// Tells the main loop what is heard, once enough is.
    fn publish(&mut self, now: Time) {
        let alive = self.agent.alive(now);
        self.news |= self.alive != alive;
        self.alive.clone_from(&alive);
        for id in &alive {
            self.hold.observe(*id, true, now);
        }
        for id in self.said.keys().filter(|id| !alive.contains(id)) {
            self.hold.observe(*id, false, now);
        }
        for (id, said) in self.agent.said(now) {
            if self.said.get(&id).is_none_or(|known| **known != *said) {
                self.announcers.extend(said.announced.iter().map(|address| (*address, id)));
                self.said.insert(id, Arc::new(said.clone()));
                self.news = true;
            }
        }
        if !self.agent.knows_all(now) && now < self.started + SETTLING {
            return;
        }
        let peer = |id: &NodeId| {
            let said = Arc::clone(self.said.get(id)?);
            let held_down = matches!(self.hold.standing(id, now), Standing::Held(_));
            Some((self.book.name(*id).to_owned(), Peer { held_down, said }))
        };
        let nodes = alive.iter().filter_map(peer).collect();
        let holders = self.agent.holders().into_iter();
        let holders = holders.map(|(address, id)| (address, self.book.name(id).to_owned())).collect();
        let heard = Heard { nodes, holders };
        self.heard.send_if_modified(|last| {
            let changed = last.as_deref() != Some(&heard);
            if changed {
                *last = Some(Arc::new(heard));
            }
            changed
        });
    }

    /// Logs what went wrong, unless it was said last.
    fn complain(&mut self, problem: String) {
        if self.problem.as_ref() != Some(&problem) {
            tracing::warn!("layer 2: {problem}");
            self.problem = Some(problem);
        }
    }
}

/// The addresses that the kernel may answer for.
#[derive(Debug)]
struct InForce(BTreeSet<IpAddr>);

impl InForce {
    /// Follows the claims. A new one waits until the kernel program was told what it stands on; what is retired goes at once.
    fn follow(&mut self, claims: &BTreeSet<IpAddr>, told: bool) {
        if told {
            self.0.clone_from(claims);
        } else {
            self.0.retain(|address| claims.contains(address));
        }
    }
}

fn forget(said: &mut BTreeMap<NodeId, Arc<Said>>, alive: &BTreeSet<NodeId>, used: &BTreeSet<IpAddr>) {
    for (_, said) in said.iter_mut().filter(|(id, _)| !alive.contains(id)) {
        if !said.announced.is_subset(used) {
            Arc::make_mut(said).announced.retain(|address| used.contains(address));
        }
    }
}

/// The link address by which a node is reached on the network of an address: of a link whose prefix holds it, or else of any that
/// is up.
fn facing(said: &Said, address: IpAddr) -> Option<Mac> {
    let up = || said.links.values().filter(|link| link.up);
    let near = up().find(|link| link.prefixes.iter().any(|prefix| prefix.contains(&address)));
    near.or_else(|| up().next()).map(|link| link.mac)
}

/// The clock of stamps: it goes on while the machine is suspended.
pub fn clock() -> Time {
    nix::time::clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

/// Listens for both families, or for IPv4 alone where there is no other.
fn bind(port: u16) -> io::Result<UdpSocket> {
    let v6 = std::net::UdpSocket::bind((std::net::Ipv6Addr::UNSPECIFIED, port));
    let socket = match v6 {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
        Err(_) => std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, port))?,
        Ok(socket) => socket,
    };
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

/// An address as the socket's family takes it.
fn of_socket(socket: &UdpSocket, to: SocketAddr) -> SocketAddr {
    match (socket.local_addr(), to.ip()) {
        (Ok(SocketAddr::V6(_)), IpAddr::V4(v4)) => SocketAddr::new(v4.to_ipv6_mapped().into(), to.port()),
        _ => to,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_claim_is_in_force_before_the_kernel_knows_what_it_stands_on() {
        let addresses = |last: &[u8]| last.iter().map(|last| IpAddr::from([192, 0, 2, *last])).collect::<BTreeSet<_>>();
        let mut in_force = InForce(addresses(&[1, 2]));
        in_force.follow(&addresses(&[2, 3]), false);
        assert_eq!(in_force.0, addresses(&[2]));
        in_force.follow(&addresses(&[2, 3]), true);
        assert_eq!(in_force.0, addresses(&[2, 3]));
    }

    #[test]
    fn what_a_node_announced_that_is_gone_is_forgotten_with_its_service() {
        let addresses = |last: &[u8]| last.iter().map(|last| IpAddr::from([192, 0, 2, *last])).collect::<BTreeSet<_>>();
        let announced = |last| Arc::new(Said { announced: addresses(last), ..Said::default() });
        let mut said = BTreeMap::from([(1, announced(&[1, 2])), (2, announced(&[3, 4]))]);
        forget(&mut said, &BTreeSet::from([1]), &addresses(&[1, 3]));
        assert_eq!(said, BTreeMap::from([(1, announced(&[1, 2])), (2, announced(&[3]))]));
    }
}
