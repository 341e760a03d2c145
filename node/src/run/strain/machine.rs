//! What the system says of this process's memory and descriptors.
//!
//! Memory is that of the process's cgroup, if it or one above it has a limit: what sockets buffer counts
//! there, as the kernel's killer does. Page cache does not, since it is given back. Else it is what the
//! process has resident but for pages of files, of what the machine has.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// How much is used of how much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) used: u64,
    pub(crate) of: u64,
}

impl Part {
    /// Rounded down.
    pub(crate) fn percent(self) -> u64 {
        u64::try_from(u128::from(self.used) * 100 / u128::from(self.of.max(1))).unwrap_or(u64::MAX)
    }
}

/// `max`: the operator's bound on what the process has resident.
pub(super) fn memory(max: Option<u64>) -> Option<Part> {
    if let Some(of) = max {
        return Some(Part { used: held()?, of });
    }
    if let Some(part) =
        of_cgroup(Path::new("/sys/fs/cgroup"), &std::fs::read_to_string("/proc/self/cgroup").ok()?)
    {
        return Some(part);
    }
    let machine = std::fs::read_to_string("/proc/meminfo").ok()?;
    Some(Part { used: held()?, of: kib_of(&machine, "MemTotal:")? })
}

/// Open ones, of those that the process may have. Linux tells their number since 6.2, as the size of the
/// folder; before, they are counted.
pub(crate) fn descriptors() -> Option<Part> {
    let of = getrlimit(Resource::Nofile).current?;
    let folder = Path::new("/proc/self/fd");
    let told = std::fs::metadata(folder).map_or(0, |folder| folder.size());
    let used = if told > 0 { told } else { std::fs::read_dir(folder).ok()?.count() as u64 };
    Some(Part { used, of })
}

/// Systems begin processes with few descriptors, for programs that can't count beyond 1,024, and let them
/// take more: a balancer needs two a connection.
pub(crate) fn raise_descriptors() {
    let now = getrlimit(Resource::Nofile);
    if now.current == now.maximum {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, ..now }) {
        tracing::warn!(%error, limit = ?now.current, "no more descriptors than that");
    }
}

/// Bytes of the process that are in memory.
pub(crate) fn resident() -> Option<u64> {
    kib_of(&std::fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// As [`resident`], without pages of files, which are given back.
fn held() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    Some(kib_of(&status, "RssAnon:")? + kib_of(&status, "RssShmem:")?)
}

/// A line such as `MemTotal:  16384 kB`, in bytes.
fn kib_of(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1 << 10)
}

/// Of the cgroup on the way up that is the fullest. `of_process` is `/proc/self/cgroup` (cgroups(7)).
fn of_cgroup(root: &Path, of_process: &str) -> Option<Part> {
    let path_of = |line: &str, second: bool| -> Option<PathBuf> {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let fits =
            if second { controllers.is_empty() } else { controllers.split(',').any(|c| c == "memory") };
        fits.then(|| path.trim_start_matches('/').into())
    };
    let (first, second) = (Version::FIRST, Version::SECOND);
    let found = of_process.lines().find_map(|line| {
        let of_first = path_of(line, false).map(|path| (root.join("memory"), path, first));
        of_first.or_else(|| Some((root.to_owned(), path_of(line, true)?, second)))
    });
    let (root, path, version) = found?;
    // In a container the path may be that of the machine, which is not to be seen: then only the root is.
    let folders = path.ancestors().map(|folder| root.join(folder));
    folders.filter_map(|folder| version.read(&folder)).max_by_key(|part| part.percent())
}

/// What files are called.
#[derive(Clone, Copy)]
struct Version {
    limit: &'static str,
    used: &'static str,
    /// Keys in `memory.stat` of page cache.
    cache: [&'static str; 2],
}

impl Version {
    const FIRST: Version = Version {
        limit: "memory.limit_in_bytes",
        used: "memory.usage_in_bytes",
        cache: ["total_inactive_file ", "total_active_file "],
    };
    const SECOND: Version =
        Version { limit: "memory.max", used: "memory.current", cache: ["inactive_file ", "active_file "] };

    fn read(&self, folder: &Path) -> Option<Part> {
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
        // `max`, or in the first version a number beyond all memory: none.
        let of = read(self.limit)?.trim().parse().ok().filter(|of| *of < 1 << 60)?;
        let used: u64 = read(self.used)?.trim().parse().ok()?;
        let stat = read("memory.stat").unwrap_or_default();
        let cached = |key: &&str| stat.lines().find_map(|line| line.strip_prefix(key)?.parse::<u64>().ok());
        Some(Part { used: used.saturating_sub(self.cache.iter().filter_map(cached).sum()), of })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_descriptors() {
        let memory = memory(Some(1 << 40)).expect("it is told");
        assert!(memory.used > 1 << 20 && memory.of == 1 << 40, "{memory:?}");
        let files: Vec<_> = (0..100).map(|_| std::fs::File::open("/proc/self/status").unwrap()).collect();
        let with = descriptors().expect("it is told");
        assert!(with.used >= 100 && with.used <= with.of, "{with:?}");
        drop(files);
    }

    #[test]
    fn the_fullest_cgroup_on_the_way_up_counts_without_page_cache() {
        let root = tempfile::tempdir().unwrap();
        let make = |folder: &str, files: &[(&str, &str)]| {
            let folder = root.path().join(folder);
            std::fs::create_dir_all(&folder).unwrap();
            files.iter().for_each(|(name, text)| std::fs::write(folder.join(name), text).unwrap());
        };
        make("", &[("memory.stat", "")]);
        make(
            "a",
            &[
                ("memory.max", "1000\n"),
                ("memory.current", "900\n"),
                ("memory.stat", "anon 1\nfile 700\ninactive_file 100\nactive_file 200\n"),
            ],
        );
        make("a/b", &[("memory.max", "max\n"), ("memory.current", "500\n")]);
        assert_eq!(of_cgroup(root.path(), "0::/a/b\n"), Some(Part { used: 600, of: 1000 }));
        make("a/b", &[("memory.max", "600\n")]);
        assert_eq!(of_cgroup(root.path(), "0::/a/b\n"), Some(Part { used: 500, of: 600 }));
        assert_eq!(of_cgroup(root.path(), "0::/elsewhere/b\n"), None);
    }

    #[test]
    fn the_first_version_of_cgroups_is_read_too() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("memory/docker/x");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("memory.limit_in_bytes"), "2000\n").unwrap();
        std::fs::write(folder.join("memory.usage_in_bytes"), "1500\n").unwrap();
        std::fs::write(folder.join("memory.stat"), "cache 9\ntotal_inactive_file 300\n").unwrap();
        std::fs::write(root.path().join("memory/memory.limit_in_bytes"), "9223372036854771712\n").unwrap();
        std::fs::write(root.path().join("memory/memory.usage_in_bytes"), "99999\n").unwrap();
        let text = "12:cpu,cpuacct:/docker/x\n5:memory:/docker/x\n0::/system.slice\n";
        assert_eq!(of_cgroup(root.path(), text), Some(Part { used: 1200, of: 2000 }));
    }
}
