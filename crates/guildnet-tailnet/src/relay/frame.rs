//! The frames of the relay protocol (DERP, tailscale `derp/derp.go`): one byte type, big-endian 32-bit length, body. Pure.
//!
//! Frames that a client has no use for are skipped, whatever their type: servers may be newer than we are.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::netmap::Key;

/// "DERP" and a key sign: what a relay says first.
const MAGIC: &[u8; 8] = b"DERP\xf0\x9f\x94\x91";
/// Bytes of type and length.
const HEADER: usize = 5;
/// Bytes of a key.
const KEY: usize = 32;
/// Bytes of the nonce in front of a sealed box.
pub(super) const NONCE: usize = 24;
/// No frame is larger. Packets have at most 64 KiB, introductions 1 MiB (`derp.MaxInfoLen`).
const MAX_FRAME: usize = 1024 * 1024;
/// What is asked of the system in one read. Bytes.
const READ: usize = 32 * 1024;

/// Types of the frames used here.
mod kind {
    pub(super) const SERVER_KEY: u8 = 0x01;
    pub(super) const CLIENT_INFO: u8 = 0x02;
    pub(super) const SERVER_INFO: u8 = 0x03;
    pub(super) const SEND_PACKET: u8 = 0x04;
    pub(super) const RECEIVED_PACKET: u8 = 0x05;
    pub(super) const KEEP_ALIVE: u8 = 0x06;
    pub(super) const NOTE_PREFERRED: u8 = 0x07;
    pub(super) const PING: u8 = 0x12;
    pub(super) const PONG: u8 = 0x13;
    pub(super) const HEALTH: u8 = 0x14;
    pub(super) const RESTARTING: u8 = 0x15;
}

/// What a relay says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// Its public key; the first frame.
    ServerKey([u8; KEY]),
    /// Nonce and sealed introduction.
    ServerInfo { nonce: [u8; NONCE], sealed: Bytes },
    /// A packet from a peer. The sender's key in front of it is left out: the relay's word is not taken for it.
    Packet(Bytes),
    /// It is alive.
    KeepAlive,
    /// To be sent back as a pong.
    Ping([u8; 8]),
    /// Something is wrong with this connection; empty: no longer.
    Health(String),
    /// It is about to restart.
    Restarting,
    /// Of no use here.
    Other(u8),
}

/// Why no further frame came.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    #[error("the relay closed the connection")]
    Closed,
    #[error("the relay announced a frame of {0} bytes, at most {MAX_FRAME} are accepted")]
    TooLarge(usize),
    #[error("the relay sent a frame of type {0:#04x} that is too short")]
    TooShort(u8),
    #[error("the server is no relay")]
    NoRelay,
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Reads frames.
pub(super) struct FrameReader<R> {
    io: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(super) fn new(io: R) -> Self {
        Self { io, buffer: BytesMut::new() }
    }

    /// The next frame. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Result<Frame, FrameError> {
        loop {
            if let Some(frame) = take(&mut self.buffer)? {
                return Ok(frame);
            }
            self.buffer.reserve(READ);
            match self.io.read_buf(&mut self.buffer).await {
                Ok(0) => return Err(FrameError::Closed),
                Ok(_) => {}
                // TLS says so when the end came without a farewell.
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(FrameError::Closed),
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// Takes the first whole frame off the buffer.
fn take(buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
    let Some([kind, length @ ..]) = buffer.first_chunk::<HEADER>().copied() else { return Ok(None) };
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > MAX_FRAME {
        return Err(FrameError::TooLarge(length));
    }
    if buffer.len() < HEADER + length {
        return Ok(None);
    }
    buffer.advance(HEADER);
    parse(kind, buffer.split_to(length).freeze()).map(Some)
}

fn parse(kind: u8, mut body: Bytes) -> Result<Frame, FrameError> {
    Ok(match kind {
        kind::SERVER_KEY => {
            if body.strip_prefix(MAGIC).is_none() {
                return Err(FrameError::NoRelay);
            }
            body.advance(MAGIC.len());
            Frame::ServerKey(head(kind, &mut body)?)
        }
        kind::SERVER_INFO => Frame::ServerInfo { nonce: head(kind, &mut body)?, sealed: body },
        kind::RECEIVED_PACKET => {
            head::<KEY>(kind, &mut body)?;
            Frame::Packet(body)
        }
        kind::KEEP_ALIVE => Frame::KeepAlive,
        kind::PING => Frame::Ping(head(kind, &mut body)?),
        kind::HEALTH => Frame::Health(String::from_utf8_lossy(&body).into_owned()),
        kind::RESTARTING => Frame::Restarting,
        other => Frame::Other(other),
    })
}

fn head<const N: usize>(kind: u8, body: &mut Bytes) -> Result<[u8; N], FrameError> {
    let head = *body.first_chunk().ok_or(FrameError::TooShort(kind))?;
    body.advance(N);
    Ok(head)
}

/// Introduces the client: its public key, and who it is, sealed for the relay.
pub(super) fn client_info(out: &mut BytesMut, key: Key, nonce: [u8; NONCE], sealed: &[u8]) {
    put(out, kind::CLIENT_INFO, &[&key.0, &nonce, sealed]);
}

/// Tells the relay whether the client listens here.
pub(super) fn note_preferred(out: &mut BytesMut, preferred: bool) {
    put(out, kind::NOTE_PREFERRED, &[&[u8::from(preferred)]]);
}

/// Sends a packet to a peer.
pub(super) fn packet(out: &mut BytesMut, to: Key, data: &[u8]) {
    put(out, kind::SEND_PACKET, &[&to.0, data]);
}

/// Answers a ping.
pub(super) fn pong(out: &mut BytesMut, payload: [u8; 8]) {
    put(out, kind::PONG, &[&payload]);
}

fn put(out: &mut BytesMut, kind: u8, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    out.put_u8(kind);
    out.put_u32(u32::try_from(length).expect("callers' frames are small"));
    for part in parts {
        out.put_slice(part);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A frame as a relay would send it.
    pub(in crate::relay) fn from_relay(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
        let mut out = BytesMut::new();
        put(&mut out, kind, parts);
        out.to_vec()
    }

    fn all(bytes: &[u8]) -> Vec<Frame> {
        let mut buffer = BytesMut::from(bytes);
        std::iter::from_fn(|| take(&mut buffer).expect("frames")).collect()
    }

    #[test]
    fn frames_are_told_apart_and_unknown_ones_skipped() {
        let bytes = [
            from_relay(0x01, &[MAGIC, &[7; 32], b"future use"]),
            from_relay(0x7f, &[b"?"]),
            from_relay(0x05, &[&[9; 32], b"hello"]),
            from_relay(0x08, &[&[9; 32], &[1]]),
            from_relay(0x12, &[&[1; 8]]),
            from_relay(0x06, &[]),
        ]
        .concat();
        assert_eq!(
            all(&bytes),
            [
                Frame::ServerKey([7; 32]),
                Frame::Other(0x7f),
                Frame::Packet(Bytes::from_static(b"hello")),
                Frame::Other(0x08),
                Frame::Ping([1; 8]),
                Frame::KeepAlive,
            ]
        );
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        let error = |bytes: &[u8]| take(&mut BytesMut::from(bytes)).expect_err("refused").to_string();
        assert_eq!(
            error(b"HTTP/1.1 400 "),
            "the relay announced a frame of 1414811695 bytes, at most 1048576 are accepted"
        );
        assert_eq!(error(&from_relay(0x01, &[b"NOPE", &[0; 36]])), "the server is no relay");
        assert_eq!(error(&from_relay(0x05, &[&[0; 31]])), "the relay sent a frame of type 0x05 that is too short");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = take(&mut buffer) {}
        }

        #[test]
        fn frames_survive_any_cut(data: Vec<u8>, cut: prop::sample::Index) {
            let bytes = [from_relay(0x05, &[&[3; 32], &data]), from_relay(0x06, &[])].concat();
            let (first, second) = bytes.split_at(cut.index(bytes.len()));
            let mut buffer = BytesMut::from(first);
            let mut frames: Vec<Frame> = std::iter::from_fn(|| take(&mut buffer).expect("frames")).collect();
            buffer.extend_from_slice(second);
            frames.extend(std::iter::from_fn(|| take(&mut buffer).expect("frames")));
            prop_assert_eq!(frames, vec![Frame::Packet(data.into()), Frame::KeepAlive]);
        }
    }
}
