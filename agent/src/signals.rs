//! The signals that end a process in order.

use std::time::Duration;

use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How long the process may take to notice that it is to end.
const GRACE: Duration = Duration::from_secs(1);

/// The word of the signal that ends the process. Should it be busy then, it is left as a crash would leave it: that must be
/// safe anyway.
pub fn stop(runtime: &Handle) -> watch::Receiver<Option<&'static str>> {
    let (sender, receiver) = watch::channel(None);
    runtime.spawn(async move {
        let signals = signal(SignalKind::terminate()).and_then(|term| Ok((term, signal(SignalKind::interrupt())?)));
        let Ok((mut term, mut interrupt)) = signals else { return };
        let name = tokio::select! {
            _ = term.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        sender.send_replace(Some(name));
        tokio::time::sleep(GRACE).await;
        std::process::exit(0);
    });
    receiver
}

/// Waits for that word.
pub async fn wait(mut stopped: watch::Receiver<Option<&'static str>>) -> &'static str {
    match stopped.wait_for(Option::is_some).await.map(|word| *word) {
        Ok(Some(word)) => word,
        // No signals can be heard; then none ends the process this way.
        _ => std::future::pending().await,
    }
}
