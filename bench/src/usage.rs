//! What this process used, processor time and resident memory, and on what machine.

/// User plus system time of this process so far, in seconds.
pub(crate) fn cpu_seconds() -> f64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    #[expect(clippy::cast_precision_loss, reason = "a process lives far less than 2^53 nanoseconds of processor time")]
    let seconds = t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9;
    seconds
}

/// Resident memory, KiB; 0 where the kernel does not tell.
pub(crate) fn rss_kib() -> u64 {
    resident(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
}

/// The same two of another process: seconds and KiB. Nothing if it has ended.
pub(crate) fn of_process(pid: u32) -> (f64, u64) {
    let read = |file| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    (ticks(&read("stat")) / f64::from(TICKS), resident(&read("status")))
}

/// Clock ticks a second in `/proc/PID/stat`: the same on every Linux machine that this runs on.
const TICKS: u32 = 100;

/// User plus system time: the 14th and 15th field, counted after the name, which may hold anything.
fn ticks(stat: &str) -> f64 {
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum()
}

fn resident(status: &str) -> u64 {
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// The machine in a few words: processor, cores, kernel.
pub(crate) fn machine() -> String {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("?", |m| m.1);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{model}, {cores} cores, kernel {}", kernel.trim())
}

#[cfg(test)]
mod tests {
    use super::{resident, ticks};

    #[test]
    fn another_process_is_read_whatever_its_name() {
        let stat = "42 (a ) b) S 1 42 42 0 -1 4194304 9 0 0 0 150 25 0 0 20 0 9 0 7 8 9";
        assert!((ticks(stat) - 175.0).abs() < f64::EPSILON);
        assert!(ticks("").abs() < f64::EPSILON);
        assert_eq!(resident("Name:\ta\nVmRSS:\t   1234 kB\n"), 1234);
        assert_eq!(resident(""), 0);
    }
}
