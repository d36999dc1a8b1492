//! The stream that a dial returns, usable from any thread, and the bell by which it calls the data task.
//!
//! Stream and data task share the flow's TCP state behind a short lock: bytes change hands in chunks, which the stream fills and
//! empties without it. There is no queue between them, so backpressure is TCP's own window.

use std::{
    fmt, io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker, ready},
    time::Instant,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
};

use crate::tcp::{LARGE_WRITE, MAX_WRITE, Tcp, give_back, with_room};

/// Calls the data task from any thread: which flows want a turn. A flow is listed once until the task has taken it.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    flows: Mutex<Vec<u64>>,
    notify: Notify,
}

impl Bell {
    /// Asks for a turn for the flow.
    pub(crate) fn ring(&self, flow: u64) {
        let first = {
            let mut flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
            flows.push(flow);
            flows.len() == 1
        };
        if first {
            self.notify.notify_one();
        }
    }

    /// Waits until somebody has rung.
    pub(crate) async fn rung(&self) {
        self.notify.notified().await;
    }

    /// Takes the flows that want a turn into `into`.
    pub(crate) fn take(&self, into: &mut Vec<u64>) {
        into.append(&mut self.flows.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// What stream and data task share of a flow.
pub(crate) struct FlowCell {
    id: u64,
    tcp: Mutex<Tcp>,
    /// Whether the flow is on the bell's list.
    listed: AtomicBool,
    bell: Arc<Bell>,
}

impl FlowCell {
    pub(crate) fn new(id: u64, tcp: Tcp, bell: Arc<Bell>) -> Self {
        Self { id, tcp: Mutex::new(tcp), listed: AtomicBool::new(false), bell }
    }

    /// The TCP state. Held for the length of a copy or of a batch of packets, never across an await.
    pub(crate) fn tcp(&self) -> MutexGuard<'_, Tcp> {
        self.tcp.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called by the task before it looks at the flow: what happens from now on rings again.
    pub(crate) fn taken(&self) {
        self.listed.store(false, Ordering::Release);
    }

    /// Wakes the application's tasks that can go on now, without the lock.
    pub(crate) fn wake(&self) {
        let wakers = self.tcp().wakers();
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    fn ring(&self) {
        if !self.listed.swap(true, Ordering::AcqRel) {
            self.bell.ring(self.id);
        }
    }
}

/// A TCP stream through the tailnet.
///
/// Dropping it closes it in good order if everything received was read, else it is reset. Shutting it down closes the
/// sending half only.
pub(crate) struct TailStream {
    cell: Arc<FlowCell>,
    /// Received, and how much of it was read.
    chunk: Vec<u8>,
    read: usize,
}

impl TailStream {
    pub(crate) const fn new(cell: Arc<FlowCell>) -> Self {
        Self { cell, chunk: Vec::new(), read: 0 }
    }
}

impl fmt::Debug for TailStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TailStream").field("flow", &self.cell.id).finish()
    }
}

impl AsyncRead for TailStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.read == self.chunk.len() {
            let read = ready!(self.cell.tcp().poll_read(cx, Instant::now()))?;
            (self.chunk, self.read) = (read.data, 0);
            if read.window_grew {
                self.cell.ring();
            }
        }
        let left = &self.chunk[self.read..];
        let len = left.len().min(buf.remaining());
        buf.put_slice(&left[..len]);
        self.read += len;
        if self.read == self.chunk.len() {
            self.read = 0;
            give_back(std::mem::take(&mut self.chunk));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TailStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut tcp = self.cell.tcp();
        let room = ready!(tcp.poll_room(cx))?;
        let len = buf.len().min(room).min(MAX_WRITE);
        if len >= LARGE_WRITE {
            // Nobody else writes: the room stays.
            drop(tcp);
            let mut chunk = with_room(len);
            chunk.extend_from_slice(&buf[..len]);
            self.cell.tcp().push(chunk);
        } else {
            tcp.append(&buf[..len]);
            drop(tcp);
        }
        self.cell.ring();
        Poll::Ready(Ok(len))
    }

    /// Written bytes are on their way; nothing here holds them back.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.cell.tcp().shutdown();
        self.cell.ring();
        Poll::Ready(Ok(()))
    }
}

impl Drop for TailStream {
    fn drop(&mut self) {
        let has_unread = self.read < self.chunk.len();
        self.cell.tcp().detach(has_unread);
        self.cell.ring();
    }
}
