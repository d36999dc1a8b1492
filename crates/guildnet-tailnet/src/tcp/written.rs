//! What was written to a flow and is not acknowledged yet, in chunks.

use std::collections::VecDeque;

use super::{
    budget::Share,
    chunks::{self, SMALL_CHUNK},
};

struct Chunk {
    start: u64,
    data: Vec<u8>,
}

impl Chunk {
    fn end(&self) -> u64 {
        self.start + self.data.len() as u64
    }
}

/// Written bytes, by their offsets in the stream; the first one has 1.
pub(super) struct Written {
    chunks: VecDeque<Chunk>,
    end: u64,
    share: Share,
}

impl Written {
    pub(super) const fn new(share: Share) -> Self {
        Self { chunks: VecDeque::new(), end: 1, share }
    }

    /// The offset of the byte that is written next.
    pub(super) const fn end(&self) -> u64 {
        self.end
    }

    /// Bytes held.
    pub(super) const fn held(&self) -> usize {
        self.share.held()
    }

    /// What may be held in all, if `wanted` bytes would do.
    pub(super) fn grant(&self, wanted: usize) -> usize {
        self.share.grant(wanted)
    }

    /// Adds bytes; few of them share a chunk.
    pub(super) fn append(&mut self, bytes: &[u8]) {
        match self.chunks.back_mut() {
            Some(last) if last.data.capacity() - last.data.len() >= bytes.len() => last.data.extend_from_slice(bytes),
            _ => {
                let mut data = chunks::with_room(bytes.len().max(SMALL_CHUNK));
                data.extend_from_slice(bytes);
                self.chunks.push_back(Chunk { start: self.end, data });
            }
        }
        self.wrote(bytes.len());
    }

    /// Adds a chunk.
    pub(super) fn push(&mut self, data: Vec<u8>) {
        let len = data.len();
        self.chunks.push_back(Chunk { start: self.end, data });
        self.wrote(len);
    }

    fn wrote(&mut self, len: usize) {
        self.end += len as u64;
        self.share.take(len);
    }

    /// Copies the bytes from an offset on, which must be held still.
    pub(super) fn copy(&self, start: u64, out: &mut [u8]) {
        let (mut at, mut done) = (start, 0);
        let mut k = self.chunks.partition_point(|chunk| chunk.start <= start).saturating_sub(1);
        while done < out.len() {
            let Some(chunk) = self.chunks.get(k) else { break };
            let from = &chunk.data[usize::try_from(at - chunk.start).unwrap_or(usize::MAX)..];
            let len = from.len().min(out.len() - done);
            out[done..done + len].copy_from_slice(&from[..len]);
            (at, done, k) = (at + len as u64, done + len, k + 1);
        }
    }

    /// Forgets chunks that lie before an offset as a whole.
    pub(super) fn drop_before(&mut self, offset: u64) {
        while let Some(chunk) = self.chunks.pop_front_if(|chunk| chunk.end() <= offset) {
            self.share.give_back(chunk.data.len());
            chunks::give_back(chunk.data);
        }
    }
}
