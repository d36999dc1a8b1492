//! An answer that goes on: a line of JSON for each thing that is said, until either side ends it.

use std::{fmt::Display, pin::Pin, pin::pin};

use bytes::{Bytes, BytesMut};
use futures_util::future::{Either, select};
use guildnet_model::Class;
use http::{HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::{ASK_TIME, Connection, HostClient, because};
use crate::{HostError, door::LINES};

/// Bytes of one line: the longest name all forwards, of which there are a few hundred at most, or hold a job's result.
const LINE_LIMIT: usize = 1 << 20;
/// Bytes of a refusal.
const REFUSAL_LIMIT: usize = 64 << 10;

/// The reading end. Dropped, it closes the connection, which the Host App notices.
pub(super) struct Lines {
    host: HostClient,
    /// None once it has ended; what it has read is still to be taken then.
    connection: Option<Pin<Box<Connection>>>,
    body: Incoming,
    /// What came of the next line so far.
    line: BytesMut,
}

impl HostClient {
    /// Asks, and returns the lines of the answer.
    ///
    /// # Errors
    /// It does not begin to answer, or refuses.
    pub(super) async fn lines(&self, method: Method, path: &str, asked: Bytes) -> Result<Lines, HostError> {
        match timeout(ASK_TIME, self.begin(method, path, asked)).await {
            Ok(begun) => begun,
            Err(_) => Err(self.silent(format_args!("nothing within {ASK_TIME:?}"))),
        }
    }

    async fn begin(&self, method: Method, path: &str, asked: Bytes) -> Result<Lines, HostError> {
        let (mut sender, connection) = self.connect().await?;
        let mut connection = Box::pin(connection);
        let mut request = self.request(method, path, asked);
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::ACCEPT, HeaderValue::from_static(LINES));
        // It moves only while it is polled.
        let (answer, alive) = match select(pin!(sender.send_request(request)), &mut connection).await {
            Either::Left((answer, _)) => (answer, true),
            Either::Right((_, asking)) => (asking.await, false),
        };
        let connection = alive.then_some(connection);
        let answer = answer.map_err(|why| self.silent(because(&why)))?;
        let status = answer.status();
        let lines = Lines { host: self.clone(), connection, body: answer.into_body(), line: BytesMut::new() };
        if status == StatusCode::OK { Ok(lines) } else { Err(lines.refusal(status).await) }
    }
}

impl Lines {
    /// The next line; `None` once the Host App has said all.
    ///
    /// # Errors
    /// It has ended, or says what can't be understood.
    /// # Cancellation
    /// Nothing is lost.
    pub(super) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, HostError> {
        loop {
            if let Some(end) = self.line.iter().position(|b| *b == b'\n') {
                let line = self.line.split_to(end + 1);
                return serde_json::from_slice(&line).map(Some).map_err(|why| self.host.unexpected(why));
            }
            if self.line.len() > LINE_LIMIT {
                return Err(self.host.unexpected("a line without an end"));
            }
            let Some(frame) = self.frame().await else { return Ok(None) };
            match frame {
                Ok(frame) => self.line.extend_from_slice(frame.data_ref().map(Bytes::as_ref).unwrap_or_default()),
                Err(why) => return Err(self.broken(because(&why))),
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

    /// That the Host App went away in the middle.
    pub(super) fn broken(&self, why: impl Display) -> HostError {
        let said = format!("the Host App at {} has ended: {why}", self.host.url());
        HostError::new(Class::Unreachable, said).with_hint("start it again: guildnet up")
    }
}
