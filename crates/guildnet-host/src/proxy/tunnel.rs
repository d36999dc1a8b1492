//! Tunnels: after a switch of protocols (exec, attach, port-forward) bytes go both ways, unseen.

use std::{io, sync::Arc, time::Duration};

use guildnet_model::Io;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use super::limits::Place;

/// Bytes that each direction holds: two TLS records, so that one is filled while the other is sent.
const BUFFER: usize = 32 * 1024;

/// How long the other direction may go on when one has ended: its last words are on their way, no more is expected.
const LINGER: Duration = Duration::from_secs(5);

/// What a tunnel lives by: it counts as one of the door's connections and ends with the door.
#[derive(Clone)]
pub(crate) struct Life {
    /// The connection's share of the door.
    pub(crate) slot: Option<Arc<dyn Send + Sync>>,
    /// Everything that is spawned for a client.
    pub(crate) tasks: TaskTracker,
    /// Cancelled when it is to end at once: the grace of a stop is over, or the session that opened it.
    pub(crate) cut: CancellationToken,
}

/// A tunnel whose far end is not known yet.
pub(super) struct Tunnel {
    /// The client, once it has switched.
    pub(super) near: OnUpgrade,
    pub(super) place: Place,
    pub(super) life: Life,
    /// Cancelled when the cluster becomes read-only.
    pub(super) writing: CancellationToken,
}

impl Tunnel {
    /// Connects the client with the far end.
    pub(super) fn spawn(self, far: Box<dyn Io>) {
        let Self { near, place, life: Life { slot, tasks, cut }, writing } = self;
        let tunnel = async move {
            let _held = (slot, place);
            let tunnel = async {
                let near = TokioIo::new(near.await.map_err(io::Error::other)?);
                copy(near, far).await
            };
            match cut.run_until_cancelled(writing.run_until_cancelled(tunnel)).await {
                Some(Some(Ok(()))) => tracing::debug!("tunnel ended"),
                Some(Some(Err(why))) => tracing::debug!(%why, "tunnel broke off"),
                Some(None) => tracing::info!("tunnel cut: the cluster is read-only from now on"),
                None => tracing::debug!("tunnel cut"),
            }
        };
        // The log names its request and its cluster.
        tasks.spawn(tunnel.in_current_span());
    }
}

/// Copies both ways until one side has ended, and a little longer the other way.
async fn copy(near: impl AsyncRead + AsyncWrite, far: impl AsyncRead + AsyncWrite) -> io::Result<()> {
    let (near_read, near_write) = tokio::io::split(near);
    let (far_read, far_write) = tokio::io::split(far);
    let (mut up, mut down) = (Box::pin(pump(near_read, far_write)), Box::pin(pump(far_read, near_write)));
    let rest = tokio::select! {
        ended = &mut up => {
            ended?;
            timeout(LINGER, down).await
        }
        ended = &mut down => {
            ended?;
            timeout(LINGER, up).await
        }
    };
    // Whoever does not end by itself is ended.
    rest.unwrap_or(Ok(()))
}

async fn pump(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer).await? {
            0 => return to.shutdown().await,
            n => to.write_all(&buffer[..n]).await?,
        }
        to.flush().await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_last_words_arrive_and_a_side_that_does_not_end_is_ended() {
        let (mut client, near) = tokio::io::duplex(1024);
        let (mut server, far) = tokio::io::duplex(1024);
        let copying = tokio::spawn(copy(near, far));
        client.write_all(b"ls").await.expect("sent");
        let mut got = [0; 2];
        server.read_exact(&mut got).await.expect("received");
        server.write_all(b"bye").await.expect("sent");
        drop(server);
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.expect("received");
        assert_eq!(rest, b"bye");
        let begun = tokio::time::Instant::now();
        copying.await.expect("no panic").expect("in order");
        assert_eq!(begun.elapsed(), LINGER, "the client never ended");
    }
}
