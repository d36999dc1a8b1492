//! Requests of others, passed on to the API server: any verb, any body, streams both ways, upgrades.
//!
//! Only what no caller can know is done here: the server's authority, its path prefix and our credential are put in
//! front, and connections are shared (`forward/pool.rs`). Which headers may pass, who may ask, and how many at once is
//! the caller's. There is no limit of time on an answer: a watch lasts as long as its reader. What ends a request that
//! hangs is a connection whose pings stay unanswered, or the caller, by dropping the future or the body.

mod pool;
#[cfg(test)]
mod tests;

use std::{
    error::Error as StdError,
    pin::Pin,
    task::{Context, Poll, ready},
};

use guildnet_model::Io;
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{AUTHORIZATION, HOST},
    request::Parts,
    uri::{PathAndQuery, Scheme},
};
use http_body_util::{BodyExt as _, Empty, combinators::UnsyncBoxBody};
use hyper::{
    body::{Body, Bytes, Frame, Incoming, SizeHint},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use tokio_rustls::TlsConnector;
use url::Url;

use crate::{ApiServer, ClusterAccess, KubeError, connect::Connect, error::KubeCause};

pub(crate) use pool::Pool;

/// The body of a request or an answer that is passed on.
pub type ForwardBody = UnsyncBoxBody<Bytes, Box<dyn StdError + Send + Sync>>;

/// What an API server answered to a request for an upgrade.
pub enum Upgrade {
    /// It switched: the head of its answer, and the stream.
    Switched(Response<()>, Box<dyn Io>),
    /// It did not, and says why.
    Refused(Response<ForwardBody>),
}

impl ApiServer {
    /// Passes a request on and returns the answer once its head is there; the body follows as it comes. Only the path and
    /// query of the URI count, byte for byte. A request without a body that reads is asked once more if a shared connection
    /// turns out to be dead, or the token was refused and another one is to be had; any other only if nothing of it was sent.
    ///
    /// # Errors
    /// [`KubeError`] if there is no answer. An answer that refuses is an answer.
    /// # Cancellation
    /// Dropping the future, or the answer's body, ends the request; the connection lives on where it is shared.
    pub async fn forward(&self, request: Request<ForwardBody>) -> Result<Response<ForwardBody>, KubeError> {
        let (head, body) = request.into_parts();
        let again = is_repeatable(&head.method, &body).then(|| head.clone());
        let mut answered = self.ask(head, body).await;
        if let (Ok(Asked { stale: true, .. }), Some(head)) = (&answered, again) {
            answered = self.ask(head, nothing()).await;
        }
        let Asked { answer, held, .. } = answered.map_err(|cause| self.error(cause))?;
        let keep = Held { connection: Some(held), _server: Some(self.clone()) };
        Ok(answer.map(|body| AnswerBody { body, held: Some(keep) }.boxed_unsync()))
    }

    async fn ask(&self, head: Parts, body: ForwardBody) -> Result<Asked, KubeCause> {
        let target = &self.0.target;
        let bearer = target.access.bearer().await?;
        let head = target.complete(head, bearer.as_ref())?;
        let (answer, held) = self.0.pool.send(Request::from_parts(head, body)).await?;
        let refused = answer.status() == StatusCode::UNAUTHORIZED;
        let stale = refused && target.access.refused(bearer.as_ref()).await;
        Ok(Asked { answer, held, stale })
    }

    /// Passes a request for an upgrade on, over a connection of its own that speaks HTTP/1.1: HTTP/2 knows no upgrades.
    ///
    /// # Errors
    /// [`KubeError`] if there is no answer.
    /// # Cancellation
    /// Dropping the future, or what it returned, closes the connection.
    pub async fn upgrade(&self, request: Request<()>) -> Result<Upgrade, KubeError> {
        self.try_upgrade(request).await.map_err(|cause| self.error(cause))
    }

    async fn try_upgrade(&self, request: Request<()>) -> Result<Upgrade, KubeCause> {
        let target = &self.0.target;
        let bearer = target.access.bearer().await?;
        let head = target.complete(request.into_parts().0, bearer.as_ref())?;
        let stream = self.0.upgrades.clone().connect().await.map_err(|e| KubeCause::lost(&e))?;
        let (mut sender, connection) =
            http1::handshake::<_, ForwardBody>(stream).await.map_err(|e| KubeCause::lost(&e))?;
        hyper::rt::Executor::execute(&self.0.tasks, connection.with_upgrades());
        let request = over_http1(head, nothing());
        let mut answer = sender.send_request(request).await.map_err(|e| KubeCause::lost(&e))?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            if answer.status() == StatusCode::UNAUTHORIZED {
                // Who asks again gets another token, if there is one.
                target.access.refused(bearer.as_ref()).await;
            }
            let keep = Held { connection: None, _server: Some(self.clone()) };
            return Ok(Upgrade::Refused(answer.map(|body| AnswerBody { body, held: Some(keep) }.boxed_unsync())));
        }
        let stream = hyper::upgrade::on(&mut answer).await.map_err(|e| KubeCause::lost(&e))?;
        Ok(Upgrade::Switched(answer.map(drop), Box::new(TokioIo::new(stream))))
    }
}

/// The connections for upgrades: as any other, but for the protocol that is agreed on.
pub(crate) fn for_upgrades(connect: &Connect, access: &ClusterAccess) -> Connect {
    let mut tls = access.tls().as_ref().clone();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Connect { tls: TlsConnector::from(std::sync::Arc::new(tls)), ..connect.clone() }
}

/// An answer, and whether the token that it refuses is replaced by now.
struct Asked {
    answer: Response<Incoming>,
    held: pool::Held,
    stale: bool,
}

/// What is put in front of every request.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) access: ClusterAccess,
}

impl Target {
    pub(crate) fn new(access: &ClusterAccess) -> Self {
        Self { access: access.clone() }
    }

    pub(crate) fn base(&self) -> &Url {
        self.access.server()
    }

    /// Completes a head: whatever authority it names is replaced by the server's, and so is any credential.
    pub(crate) fn complete(&self, mut head: Parts, bearer: Option<&HeaderValue>) -> Result<Parts, KubeCause> {
        let base = self.base();
        let asked = head.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let path = format!("{}{asked}", base.path().trim_end_matches('/'));
        let unusable = |why: &dyn std::fmt::Display| KubeCause::Answer { why: format!("no request for it: {why}") };
        head.uri = Uri::builder()
            .scheme(Scheme::HTTPS)
            .authority(base.authority())
            .path_and_query(path)
            .build()
            .map_err(|e| unusable(&e))?;
        head.headers.remove(HOST);
        head.headers.remove(AUTHORIZATION);
        if let Some(bearer) = bearer {
            head.headers.insert(AUTHORIZATION, bearer.clone());
        }
        // What the caller's own connection left there is no business of this one.
        head.extensions.clear();
        Ok(head)
    }
}

/// Whether a request can be made twice: it reads, and has no body that would be used up.
fn is_repeatable(method: &Method, body: &ForwardBody) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS].contains(method) && body.is_end_stream()
}

/// In HTTP/1.1 the path stands alone, and a header names the server.
fn over_http1(mut head: Parts, body: ForwardBody) -> Request<ForwardBody> {
    head.version = http::Version::HTTP_11;
    if let Some(host) = head.uri.authority().and_then(|a| HeaderValue::from_str(a.as_str()).ok()) {
        head.headers.insert(HOST, host);
    }
    if let Some(path) = head.uri.path_and_query().cloned() {
        head.uri = Uri::from(path);
    }
    Request::from_parts(head, body)
}

/// No body.
pub(crate) fn nothing() -> ForwardBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// What an answer holds until its body has ended.
struct Held {
    connection: Option<pool::Held>,
    /// Connections end with their client.
    _server: Option<ApiServer>,
}

/// A body as it comes, and what is held for it.
struct AnswerBody {
    body: Incoming,
    held: Option<Held>,
}

impl AnswerBody {
    /// The body is whole: its connection can take another request.
    fn ended(&mut self) {
        if let Some(connection) = self.held.take().and_then(|mut held| held.connection.take()) {
            connection.free();
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Box<dyn StdError + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_none() || self.body.is_end_stream() {
            self.ended();
        }
        if matches!(frame, Some(Err(_))) {
            self.held = None;
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        // An empty body is never asked for.
        if self.body.is_end_stream() {
            self.ended();
        }
    }
}
