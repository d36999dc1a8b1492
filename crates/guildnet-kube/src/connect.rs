//! Connections to an API server: a stream from a [`Dialer`], TLS on top of it.
//!
//! Where to dial and which name the certificate must bear are separate questions: through a tailnet the address is the
//! one inside the cluster, while the name stays what the kubeconfig says.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use guildnet_model::{BoxFuture, DialError, Dialer, Io, Target};
use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use rustls_pki_types::ServerName;
use tokio::{io::BufReader, net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tower::Service;

/// How long a direct dial may take: a LAN answers in milliseconds, and a command that then tries the tailnet should
/// not keep a person waiting. One retransmission of the first packet (1 s, RFC 6298) fits twice.
const DIRECT_DIAL_LIMIT: Duration = Duration::from_secs(3);

/// How long the TLS handshake may take once the stream is there: two round trips, also over a lossy relay.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// Bytes that are read at once: two TLS records. The TLS library alone asks for 4 KiB each time.
const READ: usize = 32 * 1024;

/// How many addresses of a host name are tried.
const MAX_ADDRESSES: usize = 4;

/// Dials from this machine, without a tailnet. Gives up after 3 s.
#[derive(Clone, Copy, Debug, Default)]
pub struct DirectDialer;

impl Dialer for DirectDialer {
    fn dial(&self, to: Target) -> BoxFuture<'_, Result<Box<dyn Io>, DialError>> {
        Box::pin(async move {
            match timeout(DIRECT_DIAL_LIMIT, TcpStream::connect(to.addr())).await {
                Ok(Ok(stream)) => {
                    // Requests are small and answered one by one: waiting to fill packets only adds delay.
                    stream.set_nodelay(true).map_err(|e| DialError::Io { target: to, why: e.to_string() })?;
                    Ok(Box::new(stream) as Box<dyn Io>)
                }
                Ok(Err(e)) if e.kind() == io::ErrorKind::ConnectionRefused => Err(DialError::Refused { target: to }),
                Ok(Err(e)) => Err(DialError::Io { target: to, why: e.to_string() }),
                Err(_) => Err(DialError::Timeout { target: to, after: DIRECT_DIAL_LIMIT }),
            }
        })
    }
}

/// What a connection goes to.
#[derive(Clone, Debug)]
pub(crate) enum Peer {
    /// An address.
    Address(Target),
    /// A host name, looked up by the system each time.
    Name { host: String, port: u16 },
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error(transparent)]
    Dial(DialError),
    #[error("{host} has no address: {why}")]
    Resolve { host: String, why: String },
    #[error("no TLS handshake within {0:?}")]
    HandshakeTimeout(Duration),
    #[error("TLS handshake: {0}")]
    Handshake(io::Error),
}

/// Opens connections for the HTTP client. The request's URL is not looked at: there is one server.
#[derive(Clone)]
pub(crate) struct Connect {
    pub(crate) via: Arc<dyn Dialer>,
    pub(crate) peer: Peer,
    pub(crate) name: ServerName<'static>,
    pub(crate) tls: TlsConnector,
}

impl Connect {
    pub(crate) async fn connect(self) -> Result<Stream, ConnectError> {
        let io = BufReader::with_capacity(READ, self.dial().await?);
        let stream = timeout(HANDSHAKE_LIMIT, self.tls.connect(self.name, io))
            .await
            .map_err(|_| ConnectError::HandshakeTimeout(HANDSHAKE_LIMIT))?
            .map_err(ConnectError::Handshake)?;
        Ok(Stream(TokioIo::new(stream)))
    }

    async fn dial(&self) -> Result<Box<dyn Io>, ConnectError> {
        let (host, port) = match &self.peer {
            Peer::Address(target) => return self.via.dial(*target).await.map_err(ConnectError::Dial),
            Peer::Name { host, port } => (host, *port),
        };
        let resolve = |why: String| ConnectError::Resolve { host: host.clone(), why };
        let found = tokio::net::lookup_host((host.as_str(), port)).await.map_err(|e| resolve(e.to_string()))?;
        let mut last = resolve("the system knows none".into());
        for address in found.take(MAX_ADDRESSES).map(|a: SocketAddr| Target::from(a)) {
            match self.via.dial(address).await {
                Ok(io) => return Ok(io),
                Err(e) => last = ConnectError::Dial(e),
            }
        }
        Err(last)
    }
}

impl Service<Uri> for Connect {
    type Response = Stream;
    type Error = ConnectError;
    type Future = BoxFuture<'static, Result<Stream, ConnectError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(self.clone().connect())
    }
}

/// A TLS stream that tells the HTTP client which protocol was agreed on.
pub(crate) struct Stream(TokioIo<TlsStream<BufReader<Box<dyn Io>>>>);

impl Stream {
    pub(crate) fn is_http2(&self) -> bool {
        self.0.inner().get_ref().1.alpn_protocol() == Some(b"h2")
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        if self.is_http2() { Connected::new().negotiated_h2() } else { Connected::new() }
    }
}

impl Read for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }
}
