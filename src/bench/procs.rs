//! What processes of this machine have used, from `/proc`: processor time, memory, bytes written. And which process listens on a port.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

/// The unit of processor time in `/proc`: the kernel's interface fixes it, whatever its own tick is.
const TICK_US: u64 = 10_000;

/// Bytes of a sector in `/proc/diskstats`, whatever the disk's own are.
const SECTOR: u64 = 512;

/// What some processes have used since they began, or together at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// Processor time of all threads, in microseconds.
    pub(super) cpu_us: u64,
    /// Bytes that they caused to be written to disks, as the kernel accounts for them.
    pub(super) written: u64,
    /// Resident memory now, in bytes.
    pub(super) resident: u64,
}

impl Usage {
    /// Of these processes; those that have gone count nothing.
    pub(super) fn of(pids: &BTreeSet<u32>) -> Self {
        let mut sum = Self::default();
        for pid in pids {
            let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
            sum.cpu_us += cpu_us(&read("stat")).unwrap_or(0);
            sum.written += field(&read("io"), "write_bytes:").unwrap_or(0);
            sum.resident += field(&read("status"), "VmRSS:").unwrap_or(0) * 1024;
        }
        sum
    }
}

/// Processor time in a line of `/proc/PID/stat`. The name in it may contain anything, also parentheses.
fn cpu_us(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let user: u64 = fields.nth(11)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) * TICK_US)
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line[name.len()..].split_whitespace().next()?.parse().ok()
}

/// What the whole machine has done since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Machine {
    /// Time in which its processors did something, in microseconds.
    pub(super) busy_us: u64,
    /// Bytes written to the disk that holds a folder, by whomever.
    pub(super) disk_written: u64,
}

impl Machine {
    /// Now; the disk is that of this folder.
    pub(super) fn now(folder: &Path) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let disk_written = device_of(folder).and_then(|device| sectors(&read("/proc/diskstats"), device)).unwrap_or(0) * SECTOR;
        Self { busy_us: busy_us(&read("/proc/stat")).unwrap_or(0), disk_written }
    }
}

/// Busy time in `/proc/stat`: everything but idling and waiting for disks.
fn busy_us(stat: &str) -> Option<u64> {
    let fields: Vec<u64> = stat.lines().next()?.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    let [user, nice, system, _, _, irq, softirq, steal, ..] = fields[..] else { return None };
    Some((user + nice + system + irq + softirq + steal) * TICK_US)
}

fn device_of(folder: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let device = fs::metadata(folder).ok()?.dev();
    Some((nix::sys::stat::major(device), nix::sys::stat::minor(device)))
}

fn sectors(diskstats: &str, (major, minor): (u64, u64)) -> Option<u64> {
    diskstats.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        if (number(0)?, number(1)?) == (major, minor) { number(9) } else { None }
    })
}

/// The process of this machine that listens there, if it is one, and we may know.
pub(super) fn listener(addr: SocketAddr) -> Option<u32> {
    let inodes: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|table| listening(&table, addr.port()))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let pids = fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.into_iter().find(|pid| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|to| inodes.iter().any(|inode| to.as_os_str() == inode.as_str()))
    })
}

/// Inodes of the sockets that listen on a port, in a table of `/proc/net`.
fn listening(table: &str, port: u16) -> Vec<u64> {
    const LISTEN: &str = "0A";
    let inode = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let local = fields.get(1)?.rsplit_once(':')?.1;
        let here = u16::from_str_radix(local, 16).ok()? == port && *fields.get(3)? == LISTEN;
        if here { fields.get(9)?.parse().ok() } else { None }
    };
    table.lines().skip(1).filter_map(inode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_of_proc_are_read() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 3062 0 0 0 250 50 0 0 20 0 1 0 5 2 3";
        assert_eq!(cpu_us(stat), Some(3_000_000));
        assert_eq!(busy_us("cpu  10 1 5 100 7 2 3 4 0 0\ncpu0 1"), Some(250_000));
        assert_eq!(field("rchar: 5\nwrite_bytes: 4096\n", "write_bytes:"), Some(4096));
        assert_eq!(field("VmRSS:\t  12 kB\n", "VmRSS:"), Some(12));
        let disks = " 254 0 vda 1 2 3 4 5 6 70 8 9\n 254 1 vda1 1 2 3 4 5 6 71 8 9\n";
        assert_eq!((sectors(disks, (254, 1)), sectors(disks, (7, 0))), (Some(71), None));
        let tcp = "  sl  local\n   0: 0100007F:094B 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0\n   \
                   1: 0100007F:094B 0100007F:1000 01 00000000:00000000 00:00000000 00000000     0        0 4243 1 0\n";
        assert_eq!((listening(tcp, 2379), listening(tcp, 2380)), (vec![4242], vec![]));
    }

    #[test]
    fn this_process_is_found_by_its_port() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let pid = std::process::id();
        assert_eq!(listener(socket.local_addr().unwrap()), Some(pid));
        assert!(Usage::of(&BTreeSet::from([pid])).resident > 1 << 16);
        assert!(Machine::now(Path::new("/proc/self")).busy_us > 0);
    }
}
