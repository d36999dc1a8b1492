//! The frames of the relay protocol (DERP, tailscale `derp/derp.go`): one byte type, big-endian 32-bit length, body. Pure.
//!
//! Frames that a client has no use for are skipped, whatever their type: servers may be newer than we are. So are those that
//! are larger than anything of their type that a client understands; neither is ever held in memory.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::{netmap::Key, quote};

/// "DERP" and a key sign: what a relay says first.
const MAGIC: &[u8; 8] = b"DERP\xf0\x9f\x94\x91";
/// Bytes of type and length.
const HEADER: usize = 5;
/// Bytes of a key.
const KEY: usize = 32;
/// Bytes of the nonce in front of a sealed box.
pub(super) const NONCE: usize = 24;
/// No frame is larger. Packets have at most 64 KiB, introductions 1 MiB (`derp.MaxInfoLen`); what claims more is no relay.
const MAX_FRAME: usize = 1024 * 1024;
/// The largest packet that is read: a WireGuard packet of the inner MTU or a disco message, with room for peers that pad. Bytes.
const MAX_PACKET: usize = 2048;
/// The largest introduction that is read: a key, or some sealed JSON of a few hundred bytes. Bytes.
const MAX_INTRODUCTION: usize = 64 * 1024;
/// The largest of all other frames: a ping, or a sentence. Bytes.
const MAX_OTHER: usize = 4096;
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
    /// A packet, and the node key of the connection from which the relay has it.
    Packet { from: Key, data: Bytes },
    /// A packet that was skipped because it is too large to be for us.
    LargePacket,
    /// It is alive.
    KeepAlive,
    /// To be sent back as a pong.
    Ping([u8; 8]),
    /// Something is wrong with this connection, in the relay's own words as one line; empty: no longer.
    Health(String),
    /// It is about to restart.
    Restarting,
    /// Of no use here, or larger than it may be.
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
    frames: Frames,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(super) fn new(io: R) -> Self {
        Self { io, frames: Frames::default() }
    }

    /// The next frame. At most the largest frame that is read and one read more are held.
    ///
    /// # Cancellation
    /// Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Result<Frame, FrameError> {
        loop {
            if let Some(frame) = self.frames.take()? {
                return Ok(frame);
            }
            let buffer = &mut self.frames.buffer;
            buffer.reserve(READ);
            match self.io.read_buf(buffer).await {
                Ok(0) => return Err(FrameError::Closed),
                Ok(_) => {}
                // TLS says so when the end came without a farewell.
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(FrameError::Closed),
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// The bytes that were read and not understood yet.
#[derive(Default)]
struct Frames {
    buffer: BytesMut,
    /// Bytes still to come of a frame that is skipped.
    skip: usize,
}

impl Frames {
    /// Takes the first whole frame off the buffer. A frame that is skipped is told as soon as its head is there.
    fn take(&mut self) -> Result<Option<Frame>, FrameError> {
        let gone = self.skip.min(self.buffer.len());
        self.buffer.advance(gone);
        self.skip -= gone;
        let Some([kind, length @ ..]) = self.buffer.first_chunk::<HEADER>().copied() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > MAX_FRAME {
            return Err(FrameError::TooLarge(length));
        }
        if length > limit(kind) {
            self.buffer.advance(HEADER);
            self.skip = length;
            return Ok(Some(if kind == kind::RECEIVED_PACKET { Frame::LargePacket } else { Frame::Other(kind) }));
        }
        let Some(body) = self.buffer.get(HEADER..HEADER + length) else { return Ok(None) };
        // A copy: a packet that waits must not keep the whole read alive in which it came.
        let body = Bytes::copy_from_slice(body);
        self.buffer.advance(HEADER + length);
        parse(kind, body).map(Some)
    }
}

/// The largest body of a frame that is read.
const fn limit(kind: u8) -> usize {
    match kind {
        kind::RECEIVED_PACKET => KEY + MAX_PACKET,
        kind::SERVER_KEY | kind::SERVER_INFO => MAX_INTRODUCTION,
        kind::KEEP_ALIVE | kind::PING | kind::PONG | kind::HEALTH | kind::RESTARTING => MAX_OTHER,
        _ => 0,
    }
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
            let from = Key(head(kind, &mut body)?);
            Frame::Packet { from, data: body }
        }
        kind::KEEP_ALIVE => Frame::KeepAlive,
        kind::PING => Frame::Ping(head(kind, &mut body)?),
        kind::HEALTH => Frame::Health(quote::line(&String::from_utf8_lossy(&body))),
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

/// Asks whether the relay is alive: it sends the payload back as a pong.
pub(super) fn ping(out: &mut BytesMut, payload: [u8; 8]) {
    put(out, kind::PING, &[&payload]);
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
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// A frame as a relay would send it.
    pub(in crate::relay) fn from_relay(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
        let mut out = BytesMut::new();
        put(&mut out, kind, parts);
        out.to_vec()
    }

    fn all(bytes: &[u8]) -> Vec<Frame> {
        let mut frames = Frames { buffer: BytesMut::from(bytes), skip: 0 };
        std::iter::from_fn(|| frames.take().expect("frames")).collect()
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
                Frame::Packet { from: Key([9; 32]), data: Bytes::from_static(b"hello") },
                Frame::Other(0x08),
                Frame::Ping([1; 8]),
                Frame::KeepAlive,
            ]
        );
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        let error = |bytes: &[u8]| {
            let mut frames = Frames { buffer: BytesMut::from(bytes), skip: 0 };
            frames.take().expect_err("refused").to_string()
        };
        assert_eq!(
            error(b"HTTP/1.1 400 "),
            "the relay announced a frame of 1414811695 bytes, at most 1048576 are accepted"
        );
        assert_eq!(error(&from_relay(0x01, &[b"NOPE", &[0; 36]])), "the server is no relay");
        assert_eq!(error(&from_relay(0x05, &[&[0; 31]])), "the relay sent a frame of type 0x05 that is too short");
    }

    #[test]
    fn a_relays_words_become_one_line() {
        let said = from_relay(0x14, &["bad\n\u{1b}[2J".as_bytes(), &[b'x'; 2000]]);
        let [Frame::Health(line)] = &all(&said)[..] else { panic!("another frame") };
        assert!(line.starts_with("bad [2Jxxx") && line.chars().count() <= 301, "{line}");
    }

    #[tokio::test]
    async fn frames_that_are_too_large_are_skipped_and_never_held() {
        let (client, mut relay) = tokio::io::duplex(1024);
        let says = async move {
            for (kind, length) in [
                (0x05, KEY + MAX_PACKET),
                (0x05, KEY + MAX_PACKET + 1),
                (0x05, MAX_FRAME),
                (0x14, MAX_FRAME),
                (0x7f, MAX_FRAME),
                (0x06, 0),
            ] {
                relay.write_all(&from_relay(kind, &[&vec![7; length]])).await.expect("the client reads");
            }
        };
        let reads = async {
            let mut reader = FrameReader::new(client);
            let mut seen = Vec::new();
            loop {
                match reader.next().await {
                    Ok(frame) => seen.push(frame),
                    Err(FrameError::Closed) => break seen,
                    Err(other) => panic!("{other}"),
                }
                assert!(
                    reader.frames.buffer.capacity() <= 2 * READ,
                    "{} bytes are held",
                    reader.frames.buffer.capacity()
                );
            }
        };
        let ((), seen) = tokio::join!(says, reads);
        let packet = Frame::Packet { from: Key([7; 32]), data: vec![7; MAX_PACKET].into() };
        assert_eq!(
            seen,
            [packet, Frame::LargePacket, Frame::LargePacket, Frame::Other(0x14), Frame::Other(0x7f), Frame::KeepAlive]
        );
    }

    #[test]
    fn a_packet_that_waits_holds_no_more_than_itself() {
        let bytes = [from_relay(0x05, &[&[9; 32], b"hello"]), from_relay(0x7f, &[&[0; 30_000]])].concat();
        let mut frames = Frames { buffer: BytesMut::from(&bytes[..]), skip: 0 };
        let Ok(Some(Frame::Packet { data, .. })) = frames.take() else { panic!("no packet") };
        assert!(data.is_unique(), "it keeps the read alive in which it came");
    }

    /// Frames of all types, whole, cut, too short and too long, with garbage between them.
    pub(in crate::relay) fn stream() -> impl Strategy<Value = Vec<u8>> {
        let frame = (0u8..0x18, prop::collection::vec(any::<u8>(), 0..80), any::<Option<u16>>(), any::<bool>())
            .prop_map(|(kind, body, length, magic)| {
                let body = if magic { [&MAGIC[..], &body].concat() } else { body };
                let mut bytes = from_relay(kind, &[&body]);
                if let Some(length) = length {
                    bytes[1..HEADER].copy_from_slice(&u32::from(length).to_be_bytes());
                }
                bytes
            });
        prop_oneof![4 => prop::collection::vec(frame, 0..20).prop_map(|frames| frames.concat()), 1 => any::<Vec<u8>>()]
    }

    proptest! {
        #[test]
        fn any_stream_of_bytes_ends_in_frames_or_an_error_and_is_never_held_whole(bytes in stream(), cuts in prop::collection::vec(1usize..200, 1..8)) {
            let mut frames = Frames::default();
            let mut cuts = cuts.into_iter().cycle();
            let mut rest = &bytes[..];
            'stream: while !rest.is_empty() {
                let (now, later) = rest.split_at(cuts.next().expect("endless").min(rest.len()));
                rest = later;
                frames.buffer.extend_from_slice(now);
                loop {
                    match frames.take() {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => break 'stream,
                    }
                }
                prop_assert!(frames.buffer.len() <= HEADER + MAX_INTRODUCTION);
            }
        }

        #[test]
        fn frames_survive_any_cut(data: Vec<u8>, skipped in 0usize..5000, cut: prop::sample::Index) {
            let large = from_relay(0x05, &[&vec![1; KEY + MAX_PACKET + 1 + skipped]]);
            let bytes = [from_relay(0x05, &[&[3; 32], &data]), large, from_relay(0x06, &[])].concat();
            let (first, second) = bytes.split_at(cut.index(bytes.len()));
            let mut frames = Frames { buffer: BytesMut::from(first), skip: 0 };
            let mut all: Vec<Frame> = std::iter::from_fn(|| frames.take().expect("frames")).collect();
            frames.buffer.extend_from_slice(second);
            all.extend(std::iter::from_fn(|| frames.take().expect("frames")));
            prop_assert_eq!(all, vec![Frame::Packet { from: Key([3; 32]), data: data.into() }, Frame::LargePacket, Frame::KeepAlive]);
        }
    }
}
