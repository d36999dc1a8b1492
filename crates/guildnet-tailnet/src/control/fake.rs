//! A control server at the wire, for tests: HTTP/2 without TLS and Noise. The test itself is the server: it takes the
//! requests one by one and answers them.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{body::Frame, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, duplex},
    sync::{mpsc, oneshot},
};

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A request that waits for its answer.
pub(super) struct Asked {
    /// Path and query.
    pub(super) path: String,
    pub(super) body: Value,
    reply: oneshot::Sender<Response<Body>>,
}

/// The open end of a map stream; dropping it ends the stream.
pub(super) struct Maps(mpsc::Sender<Bytes>);

/// The server's side of one connection.
pub(super) struct Server {
    asked: mpsc::Receiver<Asked>,
}

impl Server {
    /// A server and the client's end of the connection to it.
    pub(super) fn start() -> (Self, DuplexStream) {
        let (client, server) = duplex(64 * 1024);
        let (asked_tx, asked) = mpsc::channel(8);
        tokio::spawn(serve(server, asked_tx));
        (Self { asked }, client)
    }

    /// The next request.
    pub(super) async fn next(&mut self) -> Asked {
        self.asked.recv().await.expect("the client asks for more")
    }

    /// The next request that shows a preauth key, of a session that is kept alive meanwhile and whose node is known. `None`: the session
    /// has ended.
    pub(super) async fn shown_key(&mut self, maps: &Maps) -> Option<Asked> {
        let mut beat = tokio::time::interval(Duration::from_secs(50));
        loop {
            tokio::select! {
                asked = self.asked.recv() => match asked? {
                    asked if asked.body.get("Auth").is_some() => return Some(asked),
                    // It may be ending.
                    known => drop(known.reply.send(whole(StatusCode::OK, r#"{"MachineAuthorized":true}"#))),
                },
                _ = beat.tick() => drop(maps.0.try_send(framed(r#"{"KeepAlive":true}"#))),
            }
        }
    }

    /// Whether a request waits now.
    pub(super) fn is_asked(&mut self) -> bool {
        !self.asked.is_empty()
    }
}

async fn serve(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, asked: mpsc::Sender<Asked>) {
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let asked = asked.clone();
        async move {
            let path = request.uri().path_and_query().expect("a path").to_string();
            let body = request.into_body().collect().await.expect("a body").to_bytes();
            let (reply, answer) = oneshot::channel();
            let body = serde_json::from_slice(&body).expect("JSON");
            asked.send(Asked { path, body, reply }).await.map_err(|_| "the test is over")?;
            answer.await.map_err(|_| "the test does not answer")
        }
    });
    // Ends with an error when the client drops the connection: no concern of a test.
    http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(io), service).map(drop).await;
}

impl Asked {
    /// Answers 200 with JSON.
    pub(super) fn answer(self, json: &str) {
        self.answer_with(StatusCode::OK, json);
    }

    /// Answers.
    pub(super) fn answer_with(self, status: StatusCode, text: &str) {
        self.send(whole(status, text));
    }

    /// Answers 200 and leaves the body open.
    pub(super) fn stream(self) -> Maps {
        let (maps, chunks) = mpsc::channel::<Bytes>(8);
        let chunks = futures_util::stream::unfold(chunks, |mut chunks| async { Some((chunks.recv().await?, chunks)) });
        let body = StreamBody::new(chunks.map(|chunk| Ok(Frame::data(chunk))));
        self.send(Response::new(BodyExt::boxed_unsync(body)));
        Maps(maps)
    }

    fn send(self, answer: Response<Body>) {
        self.reply.send(answer).expect("the client waits for the answer");
    }
}

impl Maps {
    /// Sends one map message.
    pub(super) async fn send(&self, json: &str) {
        self.0.send(framed(json)).await.expect("the client reads the stream");
    }
}

fn whole(status: StatusCode, text: &str) -> Response<Body> {
    let body = Full::new(Bytes::copy_from_slice(text.as_bytes())).boxed_unsync();
    Response::builder().status(status).body(body).expect("an answer")
}

fn framed(json: &str) -> Bytes {
    let length = u32::try_from(json.len()).expect("short").to_le_bytes();
    [&length, json.as_bytes()].concat().into()
}
