//! What streams are kept in: chunks that change hands between application and data task.
//!
//! Those of the largest size are kept for the next flow that needs one, of whatever connector: memory that comes fresh from the
//! system costs a page fault for every 4 KiB, which was a tenth of a download's time.

use std::sync::{Mutex, PoisonError};

/// The largest chunk, bytes.
pub(crate) const CHUNK: usize = 64 << 10;
/// The smallest one.
pub(super) const SMALL_CHUNK: usize = 2 << 10;
/// Chunks that are kept: 2 MiB in the whole process.
const MAX_SPARE: usize = 32;

static SPARE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// An empty chunk with room for `len` bytes, or somewhat more.
pub(crate) fn with_room(len: usize) -> Vec<u8> {
    if len <= CHUNK / 2 || len > CHUNK {
        return Vec::with_capacity(len);
    }
    let spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner).pop();
    spare.unwrap_or_else(|| Vec::with_capacity(CHUNK))
}

/// The chunk is not needed any more.
pub(crate) fn give_back(mut chunk: Vec<u8>) {
    if chunk.capacity() != CHUNK {
        return;
    }
    chunk.clear();
    let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
    if spare.len() < MAX_SPARE {
        spare.push(chunk);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_and_a_used_chunk_comes_back_empty() {
        for len in [0, 1, SMALL_CHUNK, CHUNK / 2, CHUNK / 2 + 1, CHUNK, CHUNK + 1] {
            let mut chunk = with_room(len);
            assert!(chunk.is_empty() && chunk.capacity() >= len, "{len}");
            chunk.resize(len, 7);
            give_back(chunk);
        }
        let many: Vec<_> = (0..MAX_SPARE * 2).map(|_| with_room(CHUNK)).collect();
        many.into_iter().for_each(give_back);
        assert!(SPARE.lock().expect("no test panics inside").len() <= MAX_SPARE);
    }
}
