//! Bodies on their way: streamed as they come, never gathered.
//!
//! A request's body must keep coming: a client that stops in the middle would hold its place for ever. An answer's may
//! pause for as long as the cluster has nothing to say. Trailers end here in both directions: Kubernetes has none, and
//! nothing has looked at them.

use std::{
    error::Error as StdError,
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep};

/// How long a request's body may pause: the client is on this machine.
pub(super) const BODY_PAUSE: Duration = Duration::from_secs(30);

type BoxError = Box<dyn StdError + Send + Sync>;

/// A request's body with a limit on its pauses.
pub(super) struct Coming {
    body: Body,
    pause: Pin<Box<Sleep>>,
    /// It is waited for; otherwise the server is, and time does not count.
    waited_for: bool,
    late: Arc<AtomicBool>,
}

/// Tells whether a body was given up because it did not come.
#[derive(Clone)]
pub(super) struct Late(Arc<AtomicBool>);

impl Late {
    pub(super) fn is(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct Paused;

impl fmt::Display for Paused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the request's body did not come for {BODY_PAUSE:?}")
    }
}

impl StdError for Paused {}

impl Coming {
    pub(super) fn new(body: Body) -> (Self, Late) {
        let late = Arc::new(AtomicBool::new(false));
        let pause = Box::pin(tokio::time::sleep(BODY_PAUSE));
        (Self { body, pause, waited_for: false, late: Arc::clone(&late) }, Late(late))
    }
}

impl hyper::body::Body for Coming {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) if !frame.is_data() => {}
                Poll::Ready(frame) => {
                    self.waited_for = false;
                    return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
                }
                Poll::Pending if self.waited_for => {
                    ready!(self.pause.as_mut().poll(cx));
                    self.late.store(true, Ordering::Relaxed);
                    return Poll::Ready(Some(Err(Paused.into())));
                }
                Poll::Pending => {
                    self.waited_for = true;
                    self.pause.as_mut().reset(Instant::now() + BODY_PAUSE);
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body, and what is held until it has ended.
pub(super) struct Going<B, H> {
    body: B,
    _held: H,
}

impl<B, H> Going<B, H> {
    pub(super) fn new(body: B, held: H) -> Self {
        Self { body, _held: held }
    }
}

impl<B, H> hyper::body::Body for Going<B, H>
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
    H: Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        loop {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) if !frame.is_data() => {}
                frame => return Poll::Ready(frame),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stops_coming_is_given_up_and_one_that_comes_slowly_is_not() {
        let pieces = |gap: u64| {
            stream::unfold(0, move |n| async move {
                tokio::time::sleep(Duration::from_secs(gap)).await;
                (n < 3).then(|| (Ok::<_, std::io::Error>(Bytes::from_static(b"x")), n + 1))
            })
        };
        let (slow, late) = Coming::new(Body::from_stream(pieces(29)));
        assert_eq!(slow.collect().await.expect("whole").to_bytes().len(), 3);
        assert!(!late.is());
        let (stopped, late) = Coming::new(Body::from_stream(pieces(31)));
        assert!(stopped.collect().await.is_err() && late.is());
    }

    #[tokio::test(start_paused = true)]
    async fn time_does_not_count_while_the_server_is_slow() {
        let (mut body, late) = Coming::new(Body::from("x"));
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert!(body.frame().await.expect("a frame").is_ok() && !late.is());
    }
}
