//! What the system says of this process, under the names that Prometheus' own libraries have.

use std::fmt::Write as _;

/// Ticks in a second, as Linux counts them for programs.
const TICKS: f64 = 100.0;

/// Writes what can be found out; what cannot is left out.
pub(crate) fn describe(out: &mut String) {
    let mut gauge = |name: &str, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            // Writing to a string does not fail.
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
        }
    };
    let status = read("/proc/self/status");
    gauge("process_resident_memory_bytes", "Resident memory size in bytes.", kilobytes(&status, "VmRSS:"));
    gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.", kilobytes(&status, "VmSize:"));
    let open = std::fs::read_dir("/proc/self/fd").ok().map(|fds| fds.count()).and_then(|count| u32::try_from(count).ok()).map(f64::from);
    let most = files_limit(&read("/proc/self/limits"));
    gauge("process_open_fds", "Number of open file descriptors.", open);
    gauge("process_max_fds", "Maximum number of open file descriptors.", most);
    gauge("os_fd_used", "The number of used file descriptors.", open);
    gauge("os_fd_limit", "The file descriptor limit.", most);
    let times = times(&read("/proc/self/stat"));
    let born = boot_time(&read("/proc/stat")).zip(times).map(|(boot, (_, start))| boot + start);
    gauge("process_start_time_seconds", "Start time of the process since unix epoch in seconds.", born);
    if let Some((cpu, _)) = times {
        let name = "process_cpu_seconds";
        let _ = writeln!(out, "# HELP {name} Total user and system CPU time spent in seconds.\n# TYPE {name} counter\n{name}_total {cpu}");
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn kilobytes(status: &str, field: &str) -> Option<f64> {
    let rest = status.lines().find_map(|line| line.strip_prefix(field))?;
    rest.split_whitespace().next()?.parse::<f64>().ok().map(|kb| kb * 1024.0)
}

fn files_limit(limits: &str) -> Option<f64> {
    let rest = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Seconds on processors, and when it started in seconds since boot. The name in the file may have spaces and brackets.
fn times(stat: &str) -> Option<(f64, f64)> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |place: usize| fields.get(place)?.parse::<f64>().ok();
    Some(((ticks(11)? + ticks(12)?) / TICKS, ticks(19)? / TICKS))
}

fn boot_time(stat: &str) -> Option<f64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_files_are_read() {
        assert_eq!(kilobytes("Name:\tx\nVmRSS:\t  12 kB\n", "VmRSS:"), Some(12_288.0));
        assert_eq!(files_limit("Max open files            1024                 4096                 files\n"), Some(1024.0));
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 1 0 900 1 1";
        assert_eq!(times(stat), Some((2.0, 9.0)));
        assert_eq!(times("nonsense"), None);
        assert_eq!(boot_time("cpu 1\nbtime 1000\n"), Some(1000.0));
    }

    #[test]
    fn this_process_has_memory_and_files() {
        let mut text = String::new();
        describe(&mut text);
        let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok()).unwrap();
        assert!(value("process_resident_memory_bytes ") > 1e6 && value("process_open_fds ") > 2.0);
        assert!(value("process_start_time_seconds ") > 1e9 && value("process_cpu_seconds_total ") >= 0.0);
    }
}
