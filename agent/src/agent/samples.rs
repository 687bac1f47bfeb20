//! Samples of dropped packets, from the kernel's ring buffer to whoever watches.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::{MapData, RingBuf};
use culvert_abi::{Event, Reason, hook};
use culvert_api::reply::Sample;
use culvert_dataplane::codec::wide_ip;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::{broadcast, mpsc};

use super::core::{Question, ask};
use super::views;

/// How long names of links and Services are taken for true.
const FRESH: Duration = Duration::from_secs(2);

/// Batches of samples that may wait.
const BATCHES: usize = 64;

/// Names that a sample has by number only.
#[derive(Debug, Default)]
struct Names {
    services: HashMap<u32, String>,
    links: HashMap<u32, String>,
    read: Option<Instant>,
}

/// Empties a ring buffer as it fills, on a thread of its own, which ends when nobody takes what it reads. The buffer is
/// emptied whether anybody watches or not, so that who comes sees what happens then. What cannot be taken in time is lost.
pub fn read<T: Send + 'static>(
    name: &str,
    mut ring: RingBuf<MapData>,
    decode: fn(&[u8]) -> T,
) -> io::Result<mpsc::Receiver<Vec<T>>> {
    let (sender, batches) = mpsc::channel(BATCHES);
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        while !sender.is_closed() && readable(&ring).is_ok() {
            let batch = std::iter::from_fn(|| ring.next().map(|item| decode(&item))).collect();
            let _ = sender.try_send(batch);
        }
    })?;
    Ok(batches)
}

/// Passes samples on to who watches.
pub async fn pass_on(
    mut batches: mpsc::Receiver<Vec<Event>>,
    samples: broadcast::Sender<Arc<Sample>>,
    questions: mpsc::Sender<Question>,
) {
    let mut names = Names::default();
    while let Some(batch) = batches.recv().await {
        if samples.receiver_count() == 0 || batch.is_empty() {
            continue;
        }
        names.refresh(&questions).await;
        for event in batch {
            // Fails when the last one just went.
            let _ = samples.send(Arc::new(names.sample(&event)));
        }
    }
}

/// Waits until a descriptor can be read.
pub fn readable(fd: &impl AsFd) -> io::Result<()> {
    loop {
        match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            result => return result.map(drop).map_err(Into::into),
        }
    }
}

impl Names {
    async fn refresh(&mut self, questions: &mpsc::Sender<Question>) {
        if self.read.is_some_and(|read| read.elapsed() < FRESH) {
            return;
        }
        let answer = ask(questions, |core| {
            let links = core.report.borrow();
            let links = links.links.iter().map(|link| (link.index, link.wanted.name.clone())).collect();
            (views::names(core), links)
        });
        if let Some((services, links)) = answer.await {
            *self = Self { services, links, read: Some(Instant::now()) };
        }
    }

    fn sample(&self, event: &Event) -> Sample {
        let reason = Reason::ALL.get(usize::from(event.reason));
        Sample {
            reason: reason.map_or_else(|| event.reason.to_string(), |reason| reason.name().to_owned()),
            hook: hook_name(event.hook).to_owned(),
            interface: event.ifindex,
            link: self.links.get(&event.ifindex).cloned(),
            protocol: protocol_name(event.proto),
            source: socket(event.family, event.src, event.sport),
            destination: socket(event.family, event.dst, event.dport),
            service: self.services.get(&event.service).cloned(),
        }
    }
}

fn hook_name(number: u8) -> &'static str {
    match number {
        hook::POD_INGRESS => "pod_ingress",
        hook::POD_EGRESS => "pod_egress",
        hook::NODE_INGRESS => "node_ingress",
        hook::NODE_EGRESS => "node_egress",
        _ => "socket",
    }
}

fn protocol_name(number: u8) -> String {
    match number {
        culvert_abi::proto::TCP => "TCP".to_owned(),
        culvert_abi::proto::UDP => "UDP".to_owned(),
        culvert_abi::proto::SCTP => "SCTP".to_owned(),
        other => other.to_string(),
    }
}

fn socket(family: u8, words: [u32; 4], port: u16) -> SocketAddr {
    SocketAddr::new(wide_ip(words, family.into()), u16::from_be(port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_named() {
        let mut event = Event::zeroed();
        event.src = [u32::from_ne_bytes([10, 0, 0, 1]), 0, 0, 0];
        event.dst = [u32::from_ne_bytes([192, 0, 2, 1]), 0, 0, 0];
        (event.sport, event.dport) = (40_000u16.to_be(), 80u16.to_be());
        (event.family, event.proto, event.reason) = (4, culvert_abi::proto::TCP, Reason::SourceRange as u8);
        (event.hook, event.ifindex, event.service) = (hook::NODE_INGRESS, 3, 7);
        let names = Names {
            services: HashMap::from([(7, "shop/web".into())]),
            links: HashMap::from([(3, "eth0".into())]),
            read: None,
        };
        let sample = names.sample(&event);
        assert_eq!(sample.source, "10.0.0.1:40000".parse().unwrap());
        assert_eq!(sample.destination, "192.0.2.1:80".parse().unwrap());
        assert_eq!(
            (sample.reason.as_str(), sample.hook.as_str(), sample.protocol.as_str()),
            ("source_range", "node_ingress", "TCP")
        );
        assert_eq!((sample.link.as_deref(), sample.service.as_deref()), (Some("eth0"), Some("shop/web")));
        event.reason = 250;
        assert_eq!(names.sample(&event).reason, "250");
    }
}
