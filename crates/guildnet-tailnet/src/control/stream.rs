//! The framing of the map stream: a little-endian 32-bit length, then that many bytes of JSON.
//!
//! What the messages mean is in `wire.rs`; how long silence may last is decided by the caller.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// No message is larger: a map of 10,000 nodes is about 10 MiB of JSON. Bytes.
const MAX_MESSAGE: usize = 16 * 1024 * 1024;
/// Bytes of the length in front of each message.
const LENGTH: usize = 4;

/// Why the stream gave no further message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    /// The server ended the stream after a whole message.
    #[error("the server closed the map stream")]
    Closed,
    /// The stream ended inside a message.
    #[error("the map stream broke off inside a message")]
    Truncated,
    /// The length can't be right.
    #[error("the server announced a map of {0} bytes, at most {MAX_MESSAGE} are accepted")]
    TooLarge(usize),
    /// The connection failed.
    #[error("the map stream failed: {0}")]
    Io(#[from] io::Error),
}

/// Reads messages from a map stream.
pub(crate) struct MapReader<R> {
    io: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> MapReader<R> {
    pub(crate) fn new(io: R) -> Self {
        Self { io, buffer: BytesMut::new() }
    }

    /// The next message.
    ///
    /// # Cancellation
    /// Nothing is lost when the future is dropped: what was read stays in the buffer.
    pub(crate) async fn next(&mut self) -> Result<Bytes, StreamError> {
        loop {
            if let Some(message) = self.take_message()? {
                return Ok(message);
            }
            if self.io.read_buf(&mut self.buffer).await? == 0 {
                return Err(if self.buffer.is_empty() { StreamError::Closed } else { StreamError::Truncated });
            }
        }
    }

    fn take_message(&mut self) -> Result<Option<Bytes>, StreamError> {
        let Some(head) = self.buffer.first_chunk::<LENGTH>() else { return Ok(None) };
        let length = usize::try_from(u32::from_le_bytes(*head)).unwrap_or(usize::MAX);
        if length > MAX_MESSAGE {
            return Err(StreamError::TooLarge(length));
        }
        if self.buffer.len() < LENGTH + length {
            // Grows with what really comes, so that an announced length alone costs no memory.
            self.buffer.reserve((LENGTH + length - self.buffer.len()).min(64 * 1024));
            return Ok(None);
        }
        self.buffer.advance(LENGTH);
        let message = self.buffer.split_to(length).freeze();
        if self.buffer.is_empty() {
            // A large map's memory goes back when its message is dropped, not with the connection.
            self.buffer = BytesMut::new();
        }
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;

    fn framed(messages: &[&[u8]]) -> Vec<u8> {
        let frame = |m: &&[u8]| [&u32::try_from(m.len()).expect("short").to_le_bytes(), *m].concat();
        messages.iter().flat_map(frame).collect()
    }

    #[tokio::test]
    async fn messages_come_whole_however_they_are_cut() {
        for pipe in [1, 3, 1024] {
            let (client, mut server) = duplex(pipe);
            let write = async move {
                server.write_all(&framed(&[b"{}", b"", b"{\"KeepAlive\":true}"])).await.expect("written");
            };
            let read = async {
                let mut reader = MapReader::new(client);
                for want in [&b"{}"[..], b"", b"{\"KeepAlive\":true}"] {
                    assert_eq!(reader.next().await.expect("a message"), want);
                }
                assert!(matches!(reader.next().await, Err(StreamError::Closed)));
            };
            tokio::join!(write, read);
        }
    }

    #[tokio::test]
    async fn giving_up_in_the_middle_of_a_message_loses_nothing() {
        let (client, mut server) = duplex(64);
        let mut reader = MapReader::new(client);
        let bytes = framed(&[b"hello"]);
        server.write_all(&bytes[..6]).await.expect("written");
        {
            let next = std::pin::pin!(reader.next());
            assert!(futures_util::poll!(next).is_pending(), "the message is not whole yet");
        }
        server.write_all(&bytes[6..]).await.expect("written");
        assert_eq!(reader.next().await.expect("a message"), &b"hello"[..]);
    }

    #[tokio::test]
    async fn an_absurd_length_is_refused_at_once() {
        let (client, mut server) = duplex(64);
        server.write_all(&u32::MAX.to_le_bytes()).await.expect("written");
        let error = MapReader::new(client).next().await.expect_err("refused").to_string();
        assert_eq!(error, "the server announced a map of 4294967295 bytes, at most 16777216 are accepted");
    }

    #[tokio::test]
    async fn a_stream_cut_inside_a_message_is_told_apart_from_a_closed_one() {
        let (client, mut server) = duplex(64);
        server.write_all(&framed(&[b"hello"])[..7]).await.expect("written");
        drop(server);
        assert!(matches!(MapReader::new(client).next().await, Err(StreamError::Truncated)));
    }
}
