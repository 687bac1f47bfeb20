//! A kube-proxy beside the agent: looked for at the start and now and then, so that what is said of it stays true.

use std::time::Duration;

use culvert_takeover::notice;
use tokio::sync::watch;

/// How often is looked. Reading the rules of a large cluster takes some milliseconds.
const PERIOD: Duration = Duration::from_mins(1);

/// What there is of kube-proxy, a sentence each; what is new is logged.
pub fn watch() -> watch::Receiver<Vec<String>> {
    let (sender, receiver) = watch::channel(Vec::<String>::new());
    tokio::spawn(async move {
        let mut period = tokio::time::interval(PERIOD);
        loop {
            period.tick().await;
            let Ok(found) = tokio::task::spawn_blocking(notice).await else { return };
            for sentence in found.iter().filter(|sentence| !sender.borrow().contains(sentence)) {
                tracing::warn!("{sentence}");
            }
            if found.is_empty() && !sender.borrow().is_empty() {
                tracing::info!("nothing is left of kube-proxy");
            }
            if sender.is_closed() {
                return;
            }
            sender.send_replace(found);
        }
    });
    receiver
}
