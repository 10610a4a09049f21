//! What the machine must have before nodes can be made on it.

use std::path::{Path, PathBuf};

/// Something that is missing, and how to get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Need {
    /// What.
    pub(crate) what: String,
    /// How to install or enable it.
    pub(crate) how: String,
}

/// Everything that is missing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.0.iter().map(|n| format!("missing {}: {}", n.what, n.how)).collect::<Vec<_>>().join("\n"))]
pub(crate) struct Missing(pub(crate) Vec<Need>);

/// Program and Debian package.
const PROGRAMS: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("setsid", "util-linux"),
    ("mount", "mount"),
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("nft", "nftables"),
    ("iptables", "iptables"),
];

/// CNI plugins that the agents' network configuration uses.
const PLUGINS: &[&str] = &["ptp", "host-local", "loopback", "portmap", "bandwidth"];

/// Where distributions put CNI plugins.
const PLUGIN_DIRS: &[&str] = &["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];

/// Directories that root's PATH should have, and in containers often has not.
const PROGRAM_DIRS: &[&str] = &["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Where a program is.
pub(super) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(PROGRAM_DIRS.iter().map(PathBuf::from));
    dirs.map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// The directory that has all plugins.
pub(super) fn find_plugins() -> Option<&'static Path> {
    PLUGIN_DIRS.iter().map(Path::new).find(|dir| PLUGINS.iter().all(|p| dir.join(p).is_file()))
}

/// Checks that nodes can be made here.
///
/// # Errors
/// Everything that is missing, each with the command that gets it.
pub(crate) fn preflight() -> Result<(), Missing> {
    let mut needs = Vec::new();
    if !nix::unistd::geteuid().is_root() {
        needs.push(Need {
            what: "root".into(),
            how: "namespaces, mounts and cgroups need it: run with sudo, or use simulated nodes".into(),
        });
    }
    for (program, package) in PROGRAMS {
        if find_program(program).is_none() {
            needs.push(Need { what: format!("the program {program}"), how: format!("apt-get install {package}") });
        }
    }
    if find_plugins().is_none() {
        let what = format!("CNI plugins ({})", PLUGINS.join(", "));
        needs.push(Need { what, how: "apt-get install containernetworking-plugins".into() });
    }
    if super::cgroup::unified_mount().is_none() {
        needs.push(Need { what: "a cgroup2 hierarchy".into(), how: "mount -t cgroup2 none /sys/fs/cgroup/unified".into() });
    }
    if needs.is_empty() { Ok(()) } else { Err(Missing(needs)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_need_says_how() {
        let missing = Missing(vec![Need { what: "the program x".into(), how: "apt-get install x".into() }]);
        assert_eq!(missing.to_string(), "missing the program x: apt-get install x");
        assert!(find_program("sh").is_some() && find_program("no-such-program").is_none());
    }
}
