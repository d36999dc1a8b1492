//! What HTTP/2 writes in one go, written in one go.
//!
//! The library flushes after every frame of data. A frame and its head (16,384 and 9 bytes) are more than a TLS record
//! holds (RFC 8446 section 5.1), so each would become two records and a system call, for the client to take apart again. Here
//! a flush waits until the connection has nothing more to do: [`Gather::drive`].

use std::{
    future::{Future, poll_fn},
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are gathered at most: what the TLS library takes at once.
const MOST: usize = 64 * 1024;
/// Bytes that an empty buffer keeps when less than this was in it: connections that are idle hold little.
const KEPT: usize = 4 * 1024;

/// A stream of which one owner reads and writes, while another decides when what was written goes out.
pub(super) struct Gather<S>(Arc<Mutex<Inner<S>>>);

struct Inner<S> {
    stream: S,
    /// Bytes that were read already and come first.
    ahead: io::Cursor<Vec<u8>>,
    gathered: Vec<u8>,
    /// Bytes of them that the stream has taken.
    taken: usize,
    failed: Option<io::ErrorKind>,
}

impl<S> Clone for Gather<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Gather<S> {
    /// `ahead` is what was read of the stream already.
    pub(super) fn new(stream: S, ahead: Vec<u8>) -> Self {
        let ahead = io::Cursor::new(ahead);
        Self(Arc::new(Mutex::new(Inner { stream, ahead, gathered: Vec::new(), taken: 0, failed: None })))
    }

    /// Runs what reads and writes the stream; whenever it waits, what it wrote goes out.
    ///
    /// # Cancellation
    /// What was written and did not go out yet goes out when this is called again.
    pub(super) async fn drive<F: Future>(&self, mut of: Pin<&mut F>) -> F::Output {
        poll_fn(|cx| {
            let done = of.as_mut().poll(cx);
            let mut inner = self.inner();
            if let Poll::Ready(Err(why)) = inner.poll_out(cx) {
                // It must hear of it, and may be waiting for the other direction only.
                if inner.failed.replace(why.kind()).is_none() {
                    cx.waker().wake_by_ref();
                }
            }
            done
        })
        .await
    }

    fn inner(&self) -> MutexGuard<'_, Inner<S>> {
        // A stream that has panicked is not used again: its task is gone.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Inner<S> {
    /// Hands everything to the stream, and has it sent.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        if !self.gathered.is_empty() {
            ready!(self.poll_hand_over(cx))?;
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_hand_over(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.taken < self.gathered.len() {
            let some = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.gathered[self.taken..]))?;
            if some == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.taken += some;
        }
        // Not while there is much to write: it would grow again at once.
        let kept = if self.gathered.len() > KEPT { MOST } else { KEPT };
        self.taken = 0;
        self.gathered.clear();
        self.gathered.shrink_to(kept);
        Poll::Ready(Ok(()))
    }

    fn check(&self) -> io::Result<()> {
        self.failed.map_or(Ok(()), |kind| Err(kind.into()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Gather<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.inner();
        if inner.ahead.position() < inner.ahead.get_ref().len() as u64 {
            return Pin::new(&mut inner.ahead).poll_read(cx, into);
        }
        Pin::new(&mut inner.stream).poll_read(cx, into)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = self.inner();
        inner.check()?;
        if inner.gathered.len() >= MOST {
            ready!(inner.poll_hand_over(cx))?;
        }
        let some = from.len().min(MOST - inner.gathered.len());
        inner.gathered.extend_from_slice(&from[..some]);
        Poll::Ready(Ok(some))
    }

    /// Says yes: [`Gather::drive`] does it.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.inner().check())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.inner();
        ready!(inner.poll_out(cx))?;
        Pin::new(&mut inner.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, time::Duration};

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
        time::timeout,
    };

    use super::*;

    #[tokio::test]
    async fn what_was_written_goes_out_when_its_writer_waits_and_in_one_piece() {
        let (near, mut far) = duplex(MOST);
        let gather = Gather::new(near, b"first ".to_vec());
        let mut stream = gather.clone();
        let mut work = pin!(async move {
            for word in ["one ", "two ", "three"] {
                stream.write_all(word.as_bytes()).await.expect("gathered");
                stream.flush().await.expect("put off");
            }
            let mut heard = [0; 12];
            stream.read_exact(&mut heard).await.expect("an answer");
            heard
        });
        let mut piece = [0; 64];
        let (heard, ()) = tokio::join!(gather.drive(work.as_mut()), async {
            let len = far.read(&mut piece).await.expect("a piece");
            assert_eq!(&piece[..len], b"one two three");
            far.write_all(b"second").await.expect("read");
        });
        assert_eq!(&heard, b"first second");
    }

    #[tokio::test]
    async fn more_than_is_gathered_comes_whole_and_waits_for_its_reader() {
        let (near, mut far) = duplex(1000);
        let gather = Gather::new(near, Vec::new());
        let mut stream = gather.clone();
        let sent: Vec<u8> = (0..5 * MOST + 7).map(|n| (n % 251) as u8).collect();
        let all = sent.clone();
        let mut work = pin!(async move {
            stream.write_all(&all).await.expect("taken");
            stream.shutdown().await.expect("sent");
        });
        // Nobody reads: it can't all be taken in.
        assert!(timeout(Duration::from_millis(50), gather.drive(work.as_mut())).await.is_err());
        assert!(gather.inner().gathered.len() <= MOST);
        let mut heard = Vec::new();
        let (read, ()) = tokio::join!(far.read_to_end(&mut heard), gather.drive(work.as_mut()));
        assert_eq!(read.expect("to the end"), sent.len());
        assert!(heard == sent);
        assert!(gather.inner().gathered.is_empty());
    }

    #[tokio::test]
    async fn a_writer_that_waits_hears_that_its_stream_is_gone() {
        let (near, far) = duplex(10);
        let gather = Gather::new(near, Vec::new());
        let mut stream = gather.clone();
        drop(far);
        let mut work = pin!(async move {
            stream.write_all(b"lost").await.expect("gathered");
            // What looks at nothing but its output.
            poll_fn(|cx| match Pin::new(&mut stream).poll_flush(cx) {
                Poll::Ready(Ok(())) => Poll::Pending,
                failed => failed,
            })
            .await
        });
        let failed = timeout(Duration::from_secs(10), gather.drive(work.as_mut())).await.expect("it hears");
        assert_eq!(failed.expect_err("gone").kind(), io::ErrorKind::BrokenPipe);
    }
}
