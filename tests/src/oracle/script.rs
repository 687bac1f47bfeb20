//! Scripts: who talks to whom, and what happens in which order. Made from a seed; each step has a seed of its own, so that
//! a step can be left out and the others stay what they are.

use std::net::{IpAddr, SocketAddr};

use super::Hook;
use super::dice::Dice;
use super::scene::{PORTS, Scene, impostors, outsiders, pods};
use crate::place::Family;

/// A conversation.
#[derive(Clone, Debug)]
pub struct Talk {
    /// The protocol's number.
    pub proto: u8,
    /// Who asks.
    pub client: SocketAddr,
    /// Whom it asks.
    pub frontend: SocketAddr,
    /// The client is a pod of this node.
    pub pod: bool,
}

impl Talk {
    /// Where its packets come in.
    pub fn ingress(&self) -> Hook {
        if self.pod { Hook::PodIngress } else { Hook::NodeIngress }
    }

    /// Where its answers go out.
    pub fn egress(&self) -> Hook {
        if self.pod { Hook::PodEgress } else { Hook::NodeEgress }
    }
}

/// A step; `usize` is the conversation, `u64` the step's seed.
#[derive(Clone, Debug)]
pub enum Step {
    /// The client sends, and the packet goes on to the backend.
    Ask(usize, u64),
    /// The backend sends, and the packet goes on to the client.
    Reply(usize, u64),
    /// The client sends a datagram in fragments.
    AskInPieces(usize, u64),
    /// The backend does.
    ReplyInPieces(usize, u64),
    /// Somebody on the way to the backend reports an error.
    ErrorToClient(usize, u64),
    /// Somebody on the way to the client does.
    ErrorToBackend(usize, u64),
    /// Client and backend talk past the frontend, on the same ports.
    Beside(usize, u64),
    /// A packet of the conversation, damaged.
    Damaged(usize, u64),
    /// Netfilter had this connection before us.
    Foreign(usize, u64),
    /// Time passes, in milliseconds.
    Wait(u64),
    /// A backend dies.
    Kill(u32),
    /// Its id is given to a new one, at the same address.
    Revive(u32),
    /// The link has its addresses, or none.
    Addressed(bool),
}

/// A script.
#[derive(Clone, Debug)]
pub struct Script {
    /// The conversations.
    pub talks: Vec<Talk>,
    /// The steps.
    pub steps: Vec<Step>,
}

/// Times that scripts wait: around the idle limits, and such that no sum of a few is a limit.
const WAITS: [u64; 8] = [370, 2_370, 12_370, 33_370, 65_370, 130_370, 190_370, 90_000_370];

/// Makes the script of a seed.
pub fn write(scene: &Scene, seed: u64) -> Script {
    let mut dice = Dice::new(seed);
    // Now and then everybody talks to one place, until its ports run out, or one talks to everybody from one port, until
    // no backend is left that can tell.
    let crowd = dice.percent(2);
    let bore = dice.percent(2);
    let count = if crowd || bore { 40 } else { 1 + dice.below(6) };
    let mut talks: Vec<Talk> = Vec::with_capacity(count);
    for _ in 0..count {
        let talk = match talks.last() {
            Some(first) if crowd => {
                Talk { client: SocketAddr::new(first.client.ip(), 1_024 + dice.below(60_000) as u16), ..first.clone() }
            }
            Some(other) if bore || dice.percent(40) => neighbour(scene, other, &mut dice),
            _ => talk(scene, &mut dice),
        };
        talks.push(talk);
    }
    let length = if crowd || bore { 80 } else { 4 + dice.below(40) };
    let steps = (0..length).map(|i| step(scene, &talks, (crowd || bore) && i < 40, i, &mut dice)).collect();
    Script { talks, steps }
}

/// Anybody to anywhere.
fn talk(scene: &Scene, dice: &mut Dice) -> Talk {
    let (mut frontend, mut proto) = dice.pick(&scene.frontends);
    if scene.backends_of(frontend, proto).is_empty() && dice.percent(70) {
        (frontend, proto) = dice.pick(&scene.frontends);
    }
    if dice.percent(5) {
        frontend.set_port(frontend.port() + 1);
    }
    if dice.percent(4) {
        frontend.set_ip(dice.pick(&scene.corners));
        if dice.percent(30) {
            frontend.set_port(PORTS.low + dice.below(20) as u16);
        }
    }
    let family = Family::of(frontend.ip());
    let pod = dice.percent(50);
    let ip = match dice.below(40) {
        0 => dice.pick(&impostors(family)),
        _ if pod => dice.pick(&pods(family)),
        _ => dice.pick(&outsiders(family)),
    };
    Talk { proto, client: SocketAddr::new(ip, port(dice)), frontend, pod }
}

/// The same client on the same port, elsewhere: backends that two frontends share cannot tell.
fn neighbour(scene: &Scene, other: &Talk, dice: &mut Dice) -> Talk {
    let alike =
        |talk: &Talk| talk.proto == other.proto && Family::of(talk.frontend.ip()) == Family::of(other.frontend.ip());
    let found = (0..12).map(|_| talk(scene, dice)).find(alike);
    found.map_or_else(|| other.clone(), |found| Talk { client: other.client, pod: other.pod, ..found })
}

fn port(dice: &mut Dice) -> u16 {
    if dice.percent(10) { PORTS.low + dice.below(20) as u16 } else { 40_000 + dice.below(8) as u16 }
}

fn step(scene: &Scene, talks: &[Talk], opening: bool, i: usize, dice: &mut Dice) -> Step {
    let (talk, seed) = (dice.below(talks.len()), dice.number());
    if opening {
        return Step::Ask(i % talks.len(), seed);
    }
    let backends = scene.backends_of(talks[talk].frontend, talks[talk].proto);
    if backends.is_empty() {
        return Step::Ask(talk, seed);
    }
    let backend = dice.pick(backends);
    match dice.below(100) {
        0..38 => Step::Ask(talk, seed),
        38..40 => Step::Beside(talk, seed),
        40..62 => Step::Reply(talk, seed),
        62..68 => Step::AskInPieces(talk, seed),
        68..71 => Step::ReplyInPieces(talk, seed),
        71..77 => Step::ErrorToClient(talk, seed),
        77..81 => Step::ErrorToBackend(talk, seed),
        81..91 => Step::Damaged(talk, seed),
        91..92 => Step::Foreign(talk, seed),
        92..94 => Step::Wait(dice.pick(&WAITS)),
        94..96 => Step::Kill(backend),
        96..99 => Step::Revive(backend),
        _ => Step::Addressed(dice.percent(50)),
    }
}

/// The family of a conversation, as an index.
pub fn family_of(ip: IpAddr) -> usize {
    usize::from(ip.is_ipv6())
}
