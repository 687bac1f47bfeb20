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

use aya::maps::{MapData, RingBuf};
use culvert_dataplane::announced::Announced;
use culvert_dataplane::kernel::KernelStore;
use tokio::sync::watch;

pub use self::orders::Announcer;
use self::task::Task;

/// Starts the task; `None` if it cannot run here, which is logged. `echo`: announced addresses answer to ping.
pub fn start(store: KernelStore, rivals: Option<RingBuf<MapData>>, echo: bool) -> Option<Announcer> {
    let (sender, orders) = watch::channel(None);
    match Task::new(Announced::new(store), rivals?, orders, echo) {
        Ok(task) => {
            tokio::spawn(task.run());
            Some(Announcer::new(sender))
        }
        Err(error) => {
            tracing::error!(%error, "no address can be announced in layer 2");
            None
        }
    }
}
