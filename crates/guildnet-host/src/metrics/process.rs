//! This process, as the kernel sees it (proc(5)). What can't be read is left out.

use std::{fs, time::Duration};

use rustix::{
    process::{Resource, getrlimit},
    time::{ClockId, clock_gettime},
};

/// The process at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ProcessSeen {
    /// Bytes in memory.
    pub(crate) resident: Option<u64>,
    /// Bytes of address space.
    pub(crate) virtual_memory: Option<u64>,
    /// Open file descriptors.
    pub(crate) open_fds: Option<u64>,
    /// How many there may be; unlimited is left out.
    pub(crate) max_fds: Option<u64>,
    /// Threads.
    pub(crate) threads: Option<u64>,
    /// Time on processors, in the program and in the kernel for it.
    pub(crate) cpu: Duration,
}

/// Looks at it.
pub(crate) fn look() -> ProcessSeen {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    ProcessSeen {
        resident: kibibytes(&status, "VmRSS:"),
        virtual_memory: kibibytes(&status, "VmSize:"),
        // One of them is this reading's own.
        open_fds: fs::read_dir("/proc/self/fd").ok().map(|all| (all.count() as u64).saturating_sub(1)),
        max_fds: getrlimit(Resource::Nofile).current,
        threads: number(&status, "Threads:"),
        cpu: Duration::new(u64::try_from(cpu.tv_sec).unwrap_or(0), u32::try_from(cpu.tv_nsec).unwrap_or(0)),
    }
}

fn number(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

fn kibibytes(status: &str, name: &str) -> Option<u64> {
    number(status, name).map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_files_threads_and_time() {
        let seen = look();
        assert!(seen.resident.is_some_and(|bytes| bytes > 1 << 20), "{seen:?}");
        assert!(seen.virtual_memory > seen.resident, "{seen:?}");
        assert!(seen.open_fds.is_some_and(|n| n >= 3) && seen.threads.is_some_and(|n| n >= 1), "{seen:?}");
        assert!(look().cpu >= seen.cpu, "time goes on");
    }

    #[test]
    fn what_is_not_there_is_left_out() {
        let text = "VmRSS:\t     12 kB\nThreads:\tx\n";
        assert_eq!(
            (kibibytes(text, "VmRSS:"), number(text, "Threads:"), number(text, "No:")),
            (Some(12288), None, None)
        );
    }
}
