//! How much host memory can still be touched, by what the machine and the control group say.

use std::path::{Path, PathBuf};
use std::{fmt, fs};

use lowtide_units::Bytes;

/// What host memory there is and what limits it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostMemory {
    /// All of it: the machine's, or the tightest control group's limit where that is less.
    pub total: Bytes,
    /// What can still be touched without swapping or being killed. Page cache counts as free.
    pub available: Bytes,
    /// Whose limit `available` is.
    pub limit: HostLimit,
}

/// Who says how much host memory there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostLimit {
    /// Memory of the whole machine.
    Machine,
    /// A control group of version 1.
    GroupV1,
    /// A control group of version 2.
    GroupV2,
}

impl HostLimit {
    /// Whether it is a control group's, as a container has one.
    #[must_use]
    pub fn is_group(self) -> bool {
        self != Self::Machine
    }
}

impl fmt::Display for HostLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Machine => "machine",
            Self::GroupV1 => "cgroup v1",
            Self::GroupV2 => "cgroup v2",
        })
    }
}

impl HostMemory {
    /// Reads `/proc/meminfo` and the memory control groups this process is in. Where `/proc` is
    /// absent nothing is known and the machine counts as unlimited.
    #[must_use]
    pub fn now() -> Self {
        Self::under(Path::new("/"))
    }

    /// [`HostMemory::now`]'s `available`.
    #[must_use]
    pub fn available() -> Bytes {
        Self::now().available
    }

    fn under(root: &Path) -> Self {
        let meminfo = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
        let kib = |key| field(&meminfo, key).map_or(u64::MAX, |n| n.saturating_mul(1024));
        let mut host = Self {
            total: Bytes(kib("MemTotal:")),
            available: Bytes(kib("MemAvailable:")),
            limit: HostLimit::Machine,
        };
        let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
        for line in groups.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
                continue;
            };
            if controllers.is_empty() {
                host.tighten(&V2, root, path);
            } else if controllers.split(',').any(|c| c == "memory") {
                host.tighten(&V1, root, path);
            }
        }
        host
    }

    /// Applies the limits of the group at `path` and of all its parents: any of them can kill.
    fn tighten(&mut self, version: &Version, root: &Path, path: &str) {
        let top = root.join(version.mount);
        // Inside a container the path may be the host's, unseen here: then the top is ours.
        let mut at: PathBuf = top.join(path.trim_start_matches('/'));
        while at.starts_with(&top) {
            if let Some((limit, used)) = version.read(&at) {
                self.total = self.total.min(Bytes(limit));
                let left = Bytes(limit.saturating_sub(used));
                if left < self.available {
                    (self.available, self.limit) = (left, version.of);
                }
            }
            if !at.pop() {
                break;
            }
        }
    }
}

struct Version {
    of: HostLimit,
    mount: &'static str,
    limit: &'static str,
    usage: &'static str,
    reclaimable: &'static str,
}

const V2: Version = Version {
    of: HostLimit::GroupV2,
    mount: "sys/fs/cgroup",
    limit: "memory.max",
    usage: "memory.current",
    reclaimable: "inactive_file",
};
const V1: Version = Version {
    of: HostLimit::GroupV1,
    mount: "sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    reclaimable: "total_inactive_file",
};

impl Version {
    /// Limit and unreclaimable use of one group; `None` without a limit ("max" is no number).
    fn read(&self, group: &Path) -> Option<(u64, u64)> {
        let number = |name| {
            fs::read_to_string(group.join(name))
                .ok()?
                .trim()
                .parse::<u64>()
                .ok()
        };
        let (limit, usage) = (number(self.limit)?, number(self.usage)?);
        let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
        Some((
            limit,
            usage.saturating_sub(field(&stat, self.reclaimable).unwrap_or(0)),
        ))
    }
}

/// The number after `key` at the start of a line.
pub(crate) fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == key).then(|| words.next()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let at = dir.path().join(path);
            fs::create_dir_all(at.parent().unwrap()).unwrap();
            fs::write(at, text).unwrap();
        }
        dir
    }

    const MEMINFO: (&str, &str) = (
        "proc/meminfo",
        "MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    800 kB\n",
    );

    #[track_caller]
    fn check(files: &[(&str, &str)], total: u64, available: u64, limit: HostLimit) {
        let dir = root(files);
        let got = HostMemory::under(dir.path());
        assert_eq!(
            (got.total.0, got.available.0, got.limit),
            (total, available, limit),
            "{files:?}"
        );
    }

    #[test]
    fn the_tightest_limit_counts() {
        check(&[MEMINFO], 1_024_000, 819_200, HostLimit::Machine);
        let v2 = ("proc/self/cgroup", "0::/a/b\n");
        check(
            &[
                MEMINFO,
                v2,
                ("sys/fs/cgroup/a/memory.max", "500000\n"),
                ("sys/fs/cgroup/a/memory.current", "300000\n"),
                (
                    "sys/fs/cgroup/a/memory.stat",
                    "anon 1\ninactive_file 100000\n",
                ),
                ("sys/fs/cgroup/a/b/memory.max", "max\n"),
                ("sys/fs/cgroup/a/b/memory.current", "300000\n"),
            ],
            500_000,
            300_000,
            HostLimit::GroupV2,
        );
        let v1 = ("proc/self/cgroup", "4:cpu:/x\n3:memory:/not/seen/here\n");
        check(
            &[
                MEMINFO,
                v1,
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", "600000\n"),
                ("sys/fs/cgroup/memory/memory.usage_in_bytes", "500000\n"),
            ],
            600_000,
            100_000,
            HostLimit::GroupV1,
        );
        check(
            &[
                MEMINFO,
                v1,
                (
                    "sys/fs/cgroup/memory/memory.limit_in_bytes",
                    "9223372036854771712\n",
                ),
                ("sys/fs/cgroup/memory/memory.usage_in_bytes", "500000\n"),
            ],
            1_024_000,
            819_200,
            HostLimit::Machine,
        );
    }

    #[test]
    fn this_machine_has_memory() {
        let host = HostMemory::now();
        assert!(
            host.available.0 > 1 << 20 && host.available <= host.total,
            "{host:?}"
        );
        assert!(host.total.0 < 1 << 50, "{host:?}");
    }
}
