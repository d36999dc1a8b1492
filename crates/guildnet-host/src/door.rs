//! The door: HTTPS on 127.0.0.1:8090, the only way into a running Host App.
//!
//! - `door/gate.rs` decides who may pass (`door/token.rs`, `door/kube_token.rs`, `door/metrics_token.rs`, `door/session.rs`: by
//!   which credential), `door/routes.rs` what there is behind it (`door/v1.rs`: the API), `door/serve.rs` moves the bytes,
//!   `door/crowd.rs` says which connection gives way, `door/certificate.rs` renews what TLS shows, `door/problem.rs` says no;
//!   `door/api.rs` is what it asks of the Host App, and all that it knows of it.
//! - Behind `/k8s/` is `proxy.rs`, with rules of its own; behind `/metrics` is `metrics.rs`. `door/shell.rs` is the page: signing
//!   in, and little more yet.
//! - Every request has a name in the log: `door/trace.rs`.
//! - Loopback only: the certificate names nothing else. No CORS.
//!
//! Bound by [`Door::bind`], so that a port that is taken is known before anything runs; serving begins with
//! [`Door::spawn`].

mod api;
mod certificate;
mod crowd;
mod gate;
mod gather;
pub(crate) mod kube_token;
pub(crate) mod metrics_token;
pub(crate) mod problem;
mod routes;
mod serve;
pub(crate) mod session;
mod shell;
#[cfg(test)]
pub(crate) mod tests;
mod token;
pub(crate) mod trace;
mod v1;

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    sync::Arc,
};

use guildnet_model::Class;
use tokio::{
    net::{TcpListener, TcpSocket},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

pub(crate) use api::HostApi;
pub(crate) use token::token;

pub(crate) use token::{equal, existing as existing_token};
pub(crate) use v1::{AskedForwards, Changed, DIAL_PROTOCOL, LINES, LoginCode, Revoked, Verify};

use crate::{
    HostError,
    proxy::{ApiServers, Limits},
};
use certificate::Certificate;
use gate::Gate;
use serve::Server;

/// Connections that wait to be accepted, as many as Linux allows unless told otherwise (`net.core.somaxconn`): while many
/// come at once, who finds no place here comes again only after a second.
const BACKLOG: u32 = 4096;

/// The Host App's HTTPS listener: bound, with certificates and token made; nothing is served before [`Door::spawn`].
pub(crate) struct Door {
    listener: TcpListener,
    address: SocketAddr,
    server: Server,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Where the door is to be.
#[derive(Debug)]
pub enum Listen {
    /// At this address, still to be bound.
    At(SocketAddr),
    /// On a listener that somebody else has bound, on loopback: [`crate::Handed`] sees to it.
    On(std::net::TcpListener),
}

impl From<SocketAddr> for Listen {
    fn from(address: SocketAddr) -> Self {
        Self::At(address)
    }
}

impl Door {
    /// Binds the port (or takes the listener), and makes the certificates and the token of the home folder if there are none.
    ///
    /// # Errors
    /// [`Class::Usage`] for an address that is not 127.0.0.1 or ::1, [`Class::Conflict`] if the port is taken; a
    /// certificate or token that can't be made or used.
    pub(crate) async fn bind<A>(home: &Path, listen: Listen, api: Arc<A>) -> Result<Self, HostError>
    where
        A: HostApi + ApiServers + 'static,
    {
        let servers = Arc::clone(&api);
        Self::bind_with(home, listen, api, servers, Limits::default()).await
    }

    /// [`Door::bind`] with API servers from elsewhere, and a test's limits for each cluster.
    pub(crate) async fn bind_with(
        home: &Path,
        listen: Listen,
        api: Arc<dyn HostApi>,
        servers: Arc<dyn ApiServers>,
        limits: Limits,
    ) -> Result<Self, HostError> {
        // The port first: where it is taken nothing is made.
        let (listener, address) = match listen {
            Listen::At(listen) => {
                check_listen(listen)?;
                let listener = bound(listen).map_err(|why| not_bound(listen, &why))?;
                let address = listener.local_addr().map_err(|why| not_bound(listen, &why))?;
                (listener, address)
            }
            Listen::On(listener) => {
                let address = listener.local_addr().map_err(|why| not_taken(&why))?;
                check_listen(address)?;
                (TcpListener::from_std(listener).map_err(|why| not_taken(&why))?, address)
            }
        };
        let certificate = Certificate::load(home, Arc::clone(api.metrics()))?;
        let gate = Gate::new(address, token(home)?);
        Ok(Self { listener, address, server: Server::new(gate, certificate, api, servers, limits) })
    }

    /// Where it listens (with the port that the system gave, if 0 was asked for).
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is cancelled. Then nothing new is accepted, open requests and dials may end within 10 s, and
    /// what is left is cut; the task ends when everything is joined.
    pub(crate) fn spawn(self, stop: CancellationToken) -> JoinHandle<()> {
        tokio::spawn(self.server.serve(self.listener, stop))
    }
}

/// A listener as [`TcpListener::bind`] makes it, with a longer queue.
fn bound(listen: SocketAddr) -> io::Result<TcpListener> {
    let socket = if listen.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(listen)?;
    socket.listen(BACKLOG)
}

/// Whether the Host App can be at this address: the certificate names no other.
///
/// # Errors
/// [`Class::Usage`] for an address that is not 127.0.0.1 or ::1.
pub(crate) fn check_listen(listen: SocketAddr) -> Result<(), HostError> {
    if [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)].contains(&listen.ip()) {
        return Ok(());
    }
    let message = format!("the Host App can't listen on {listen}: it serves this device only");
    Err(HostError::new(Class::Usage, message).with_hint(format!("give --listen 127.0.0.1:{}", listen.port())))
}

fn not_taken(why: &io::Error) -> HostError {
    HostError::new(Class::Failed, format!("the socket that was handed over can't be used: {why}"))
        .with_hint("restart guildnet.socket and guildnet.service")
}

fn not_bound(listen: SocketAddr, why: &io::Error) -> HostError {
    match why.kind() {
        io::ErrorKind::AddrInUse => HostError::new(Class::Conflict, format!("{listen} is taken by another program"))
            .with_hint(format!(
                "see whether a Host App of yours runs: guildnet status; who has it: ss -ltnp 'sport = {}'; or take another port with --listen 127.0.0.1:PORT",
                listen.port()
            )),
        io::ErrorKind::PermissionDenied => {
            HostError::new(Class::Precondition, format!("this user may not listen on {listen}"))
                .with_hint("take a port above 1023 with --listen 127.0.0.1:PORT")
        }
        _ => HostError::new(Class::Failed, format!("can't listen on {listen}: {why}"))
            .with_hint("take another address with --listen"),
    }
}
