//! Where the process has its memory from.

use nix::libc;

/// Blocks of this many bytes and more come from the system itself and go back to it when they are freed: half a flow's buffer
/// (1 MiB each way), most of whose pages are never used. Left alone, glibc raises its own threshold (128 KiB) above that with the
/// first buffer that is freed. From then on it takes them from its heap, clears them by hand, which makes every page real, and keeps
/// them.
const LARGE: libc::c_int = 512 * 1024;

/// Has large blocks come from the system from now on.
#[allow(unsafe_code, reason = "only the allocator's own call changes its thresholds")]
pub(crate) fn large_blocks_from_system() {
    // SAFETY: it takes two numbers and the allocator's own lock. A refusal changes nothing.
    let _taken = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) };
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use super::*;

    /// Blocks that the allocator has from the system itself.
    #[allow(unsafe_code, reason = "only the allocator knows")]
    fn of_the_system() -> usize {
        // SAFETY: it takes nothing and returns numbers.
        unsafe { libc::mallinfo2() }.hblks
    }

    #[test]
    fn a_large_block_comes_from_the_system_though_one_was_freed_before() {
        large_blocks_from_system();
        drop(black_box(vec![0u8; 1 << 20]));
        let before = of_the_system();
        let block = black_box(vec![0u8; 1 << 20]);
        assert_eq!(of_the_system(), before + 1);
        drop(block);
    }
}
