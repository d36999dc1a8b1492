//! The connector as its callers hold it: a handle that sends commands to the data task and watches its status.
//!
//! Nothing here touches packets; the task behind the handle is in `data.rs`. A dial that is dropped rings the task's bell,
//! so that a half-open flow is given up at once.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use guildnet_model::{
    BoxFuture, Connector, ConnectorSnapshot, ConnectorSpec, ConnectorState, ConnectorStatus, DialError, Dialer,
    Dropped, Io, ListenError, Listener, Networks, PeerContact, ProbeOutcome, Target,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::stream::{Bell, TailStream};

/// How long a dial waits for an answer: a cold dial (relay, handshake, path) takes under a second, a router that restarts
/// with its session lost about three; callers that retry want to know soon.
pub(crate) const DIAL_LIMIT: Duration = Duration::from_secs(10);
/// Commands that may wait for the data task; more callers wait for room.
const WAITING_COMMANDS: usize = 256;

/// What the handle asks of the data task.
pub(crate) enum Command {
    /// Opens a flow to a target in the cluster's networks.
    Dial(Dial),
    /// Opens a flow through the named peer, past all filters.
    Probe { through: PeerContact, dial: Dial },
    /// Listens on a port of this node.
    Listen { port: u16, answer: oneshot::Sender<Result<mpsc::Receiver<Accepted>, ListenError>> },
    /// Shows everything.
    Snapshot(oneshot::Sender<ConnectorSnapshot>),
}

/// A connection that somebody else has opened, and from where.
pub(crate) type Accepted = (TailStream, SocketAddr);

/// A flow to be opened.
pub(crate) struct Dial {
    pub(crate) to: Target,
    /// The flow's number, chosen by the caller so that it can ring for it.
    pub(crate) flow: u64,
    pub(crate) answer: oneshot::Sender<Result<TailStream, DialError>>,
}

/// The handle's half of what handle and data task share.
#[derive(Debug)]
pub(crate) struct Shared {
    routes: Networks,
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<ConnectorStatus>,
    bell: Arc<Bell>,
    next_flow: AtomicU64,
    cancel: CancellationToken,
}

/// The data task's half.
pub(crate) struct Ends {
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) status: watch::Sender<ConnectorStatus>,
    pub(crate) bell: Arc<Bell>,
    pub(crate) cancel: CancellationToken,
}

/// Makes the two halves.
pub(crate) fn pair(spec: &ConnectorSpec, cancel: CancellationToken) -> (Shared, Ends) {
    let (command_tx, command_rx) = mpsc::channel(WAITING_COMMANDS);
    let (status_tx, status_rx) = watch::channel(ConnectorStatus::now_in(ConnectorState::Starting));
    let bell = Arc::new(Bell::default());
    let shared = Shared {
        routes: spec.routes.clone(),
        commands: command_tx,
        status: status_rx,
        bell: bell.clone(),
        next_flow: AtomicU64::new(1),
        cancel: cancel.clone(),
    };
    (shared, Ends { commands: command_rx, status: status_tx, bell, cancel })
}

impl Shared {
    fn not_ready(&self) -> DialError {
        self.status.borrow().as_dial_error()
    }

    /// Sends a dial and waits for its answer. Dropping the future gives the flow up.
    async fn open(&self, to: Target, command: impl FnOnce(Dial) -> Command) -> Result<TailStream, DialError> {
        let (answer, answered) = oneshot::channel();
        let flow = self.next_flow.fetch_add(1, Ordering::Relaxed);
        self.commands.send(command(Dial { to, flow, answer })).await.map_err(|_| self.not_ready())?;
        let mut waiting = Waiting { shared: self, flow, answered };
        (&mut waiting.answered).await.unwrap_or_else(|_| Err(self.not_ready()))
    }
}

/// A dial whose answer has not come yet.
struct Waiting<'a> {
    shared: &'a Shared,
    flow: u64,
    answered: oneshot::Receiver<Result<TailStream, DialError>>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // Closed first, so that the task sees that nobody waits any more. Harmless after an answer.
        self.answered.close();
        self.shared.bell.ring(self.flow);
    }
}

/// One membership of one cluster's tailnet.
pub(crate) struct TailnetConnector {
    shared: Arc<Shared>,
}

impl TailnetConnector {
    pub(crate) fn new(shared: Shared) -> Self {
        Self { shared: Arc::new(shared) }
    }
}

impl Drop for TailnetConnector {
    /// Nobody can stop it any more: it stops by itself.
    fn drop(&mut self) {
        self.shared.cancel.cancel();
    }
}

impl Connector for TailnetConnector {
    fn dialer(&self) -> Arc<dyn Dialer> {
        Arc::new(TailnetDialer { shared: self.shared.clone() })
    }

    fn status(&self) -> watch::Receiver<ConnectorStatus> {
        self.shared.status.clone()
    }

    fn snapshot(&self) -> BoxFuture<'_, ConnectorSnapshot> {
        Box::pin(async {
            let (answer, answered) = oneshot::channel();
            if self.shared.commands.send(Command::Snapshot(answer)).await.is_ok()
                && let Ok(snapshot) = answered.await
            {
                return snapshot;
            }
            let status = self.shared.status.borrow().clone();
            ConnectorSnapshot { status, peers: Vec::new(), home_relay: None, flows: 0, dropped: Dropped::default() }
        })
    }

    fn probe(&self, through: PeerContact, to: Target, within: Duration) -> BoxFuture<'_, ProbeOutcome> {
        Box::pin(async move {
            let open = self.shared.open(to, |dial| Command::Probe { through, dial });
            match timeout(within, open).await {
                Ok(Ok(_) | Err(DialError::Refused { .. })) => ProbeOutcome::Answered,
                Err(_) | Ok(Err(DialError::Timeout { .. })) => ProbeOutcome::Silent,
                Ok(Err(other)) => ProbeOutcome::Impossible { why: other.to_string() },
            }
        })
    }

    fn listen(&self, port: u16) -> BoxFuture<'_, Result<Box<dyn Listener>, ListenError>> {
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            let command = Command::Listen { port, answer };
            self.shared.commands.send(command).await.map_err(|_| ListenError::Stopped)?;
            let accepted = answered.await.map_err(|_| ListenError::Stopped)??;
            Ok(Box::new(TailnetListener { accepted }) as Box<dyn Listener>)
        })
    }

    fn stop(&self, grace: Duration) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.shared.cancel.cancel();
            let deadline = Instant::now() + grace;
            // The task drops its end of the channel as the last thing that it does.
            if timeout_at(deadline, self.shared.commands.closed()).await.is_err() {
                tracing::warn!(?grace, "a connector did not stop within its grace; it goes on ending by itself");
            }
        })
    }
}

/// Takes what comes to one port.
struct TailnetListener {
    accepted: mpsc::Receiver<Accepted>,
}

impl Listener for TailnetListener {
    fn accept(&mut self) -> BoxFuture<'_, Option<(Box<dyn Io>, SocketAddr)>> {
        Box::pin(async {
            let (stream, from) = self.accepted.recv().await?;
            Some((Box::new(stream) as Box<dyn Io>, from))
        })
    }
}

/// Dials through one connector: its cluster's networks only.
struct TailnetDialer {
    shared: Arc<Shared>,
}

impl fmt::Debug for TailnetDialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TailnetDialer").field("routes", &self.shared.routes.to_string()).finish()
    }
}

impl Dialer for TailnetDialer {
    fn dial(&self, to: Target) -> BoxFuture<'_, Result<Box<dyn Io>, DialError>> {
        Box::pin(async move {
            let allowed = match to.addr().ip() {
                std::net::IpAddr::V4(ip) => self.shared.routes.contains(ip),
                std::net::IpAddr::V6(_) => false,
            };
            if !allowed {
                return Err(DialError::NotAllowed { target: to, allowed: self.shared.routes.to_string() });
            }
            match timeout(DIAL_LIMIT, self.shared.open(to, Command::Dial)).await {
                Ok(answer) => Ok(Box::new(answer?) as Box<dyn Io>),
                Err(_) => Err(DialError::Timeout { target: to, after: DIAL_LIMIT }),
            }
        })
    }
}
