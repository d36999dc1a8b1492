//! Forwards and proxies of the running Host App, for the command.

use std::pin::{Pin, pin};

use bytes::{Bytes, BytesMut};
use futures_util::future::{Either, select};
use guildnet_model::{Class, ClusterId};
use http::{Method, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use tokio::time::timeout;

use super::{ASK_TIME, Connection, HostClient, because};
use crate::{
    HostError,
    door::AskedForwards,
    forward::{ForwardSpec, ForwardStatus, ProxiesStatus, Said},
};

/// Bytes of one line of a lease: the first one names all forwards, of which there are a few hundred at most.
const LINE_LIMIT: usize = 1 << 20;
/// Bytes of a refusal.
const REFUSAL_LIMIT: usize = 64 << 10;

/// The other end of a lease (`forward/lease.rs`): the forwards end when it is dropped.
pub(crate) struct LeaseClient {
    host: HostClient,
    /// None once it has ended; what it has read is still to be taken then.
    connection: Option<Pin<Box<Connection>>>,
    body: Incoming,
    /// What came of the next line so far.
    line: BytesMut,
}

impl HostClient {
    /// All forwards.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub(crate) async fn forwards(&self) -> Result<Vec<ForwardStatus>, HostError> {
        self.get("/api/v1/forwards").await
    }

    /// The proxies of a cluster.
    ///
    /// # Errors
    /// There is no such cluster; it does not answer, or refuses.
    pub(crate) async fn proxies(&self, cluster: &ClusterId) -> Result<ProxiesStatus, HostError> {
        self.get(&format!("/api/v1/clusters/{cluster}/proxies")).await
    }

    /// Makes forwards that stay.
    ///
    /// # Errors
    /// It can't make one of them, and has made none; it does not answer, or refuses.
    pub(crate) async fn keep_forwards(
        &self,
        cluster: &ClusterId,
        forwards: &[ForwardSpec],
    ) -> Result<Vec<ForwardStatus>, HostError> {
        let asked = asked(cluster, forwards);
        let answer = self.exchange(Method::POST, "/api/v1/forwards", asked, ASK_TIME).await?;
        self.read(answer)
    }

    /// Stops a forward; what it had done by then.
    ///
    /// # Errors
    /// [`Class::NotFound`] if there is none of that id; it does not answer, or refuses.
    pub(crate) async fn stop_forward(&self, id: &str) -> Result<ForwardStatus, HostError> {
        let id: String = url::form_urlencoded::byte_serialize(id.as_bytes()).collect();
        let answer = self.exchange(Method::DELETE, &format!("/api/v1/forwards/{id}"), Bytes::new(), ASK_TIME).await?;
        self.read(answer)
    }

    /// Makes forwards that end with what is returned.
    ///
    /// # Errors
    /// As [`Self::keep_forwards`].
    pub(crate) async fn lease_forwards(
        &self,
        cluster: &ClusterId,
        forwards: &[ForwardSpec],
    ) -> Result<(Vec<ForwardStatus>, LeaseClient), HostError> {
        match timeout(ASK_TIME, self.leased(asked(cluster, forwards))).await {
            Ok(leased) => leased,
            Err(_) => Err(self.silent(format_args!("nothing within {ASK_TIME:?}"))),
        }
    }

    async fn leased(&self, asked: Bytes) -> Result<(Vec<ForwardStatus>, LeaseClient), HostError> {
        let (mut sender, connection) = self.connect().await?;
        let mut connection = Box::pin(connection);
        let mut request = self.request(Method::POST, "/api/v1/forwards/lease", asked);
        request.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
        // It moves only while it is polled.
        let (answer, alive) = match select(pin!(sender.send_request(request)), &mut connection).await {
            Either::Left((answer, _)) => (answer, true),
            Either::Right((_, asking)) => (asking.await, false),
        };
        let connection = alive.then_some(connection);
        let answer = answer.map_err(|why| self.silent(because(&why)))?;
        let status = answer.status();
        let body = answer.into_body();
        let mut lease = LeaseClient { host: self.clone(), connection, body, line: BytesMut::new() };
        if status != StatusCode::OK {
            return Err(lease.refusal(status).await);
        }
        match lease.next().await? {
            Some(Said::Forwards(forwards)) => Ok((forwards, lease)),
            _ => Err(self.silent("it did not say which forwards there are")),
        }
    }
}

fn asked(cluster: &ClusterId, forwards: &[ForwardSpec]) -> Bytes {
    let asked = AskedForwards { cluster: cluster.clone(), forwards: forwards.to_vec() };
    serde_json::to_vec(&asked).expect("an id and texts are always JSON").into()
}

impl LeaseClient {
    /// What the Host App says next; `None` once the forwards have ended there.
    ///
    /// # Errors
    /// It has ended, or says what can't be understood.
    /// # Cancellation
    /// Nothing is lost.
    pub(crate) async fn next(&mut self) -> Result<Option<Said>, HostError> {
        loop {
            if let Some(end) = self.line.iter().position(|b| *b == b'\n') {
                let line = self.line.split_to(end + 1);
                return serde_json::from_slice(&line).map(Some).map_err(|why| self.odd(why));
            }
            if self.line.len() > LINE_LIMIT {
                return Err(self.odd("a line without an end"));
            }
            let Some(frame) = self.frame().await else { return Ok(None) };
            match frame {
                Ok(frame) => self.line.extend_from_slice(frame.data_ref().map(Bytes::as_ref).unwrap_or_default()),
                Err(why) => {
                    let said = format!("the Host App at {} has ended: {}", self.host.url(), because(&why));
                    return Err(HostError::new(Class::Unreachable, said)
                        .with_hint("start it again: guildnet up; to have forwards that come back with it: --keep"));
                }
            }
        }
    }

    async fn frame(&mut self) -> Option<Result<hyper::body::Frame<Bytes>, hyper::Error>> {
        if let Some(connection) = &mut self.connection {
            match select(pin!(self.body.frame()), connection).await {
                Either::Left((frame, _)) => return frame,
                Either::Right(_) => {}
            }
            self.connection = None;
        }
        self.body.frame().await
    }

    async fn refusal(self, status: StatusCode) -> HostError {
        let gathering = pin!(Limited::new(self.body, REFUSAL_LIMIT).collect());
        let gathered = match self.connection {
            Some(connection) => match select(pin!(gathering), connection).await {
                Either::Left((gathered, _)) => gathered,
                Either::Right((_, gathering)) => gathering.await,
            },
            None => gathering.await,
        };
        let body = gathered.map(|body| body.to_bytes()).unwrap_or_default();
        self.host.refused(status, &body)
    }

    fn odd(&self, why: impl std::fmt::Display) -> HostError {
        let said = format!("the Host App at {} said something else than expected: {why}", self.host.url());
        HostError::new(Class::Failed, said).with_hint("it may be of another version: guildnet down, then guildnet up")
    }
}
