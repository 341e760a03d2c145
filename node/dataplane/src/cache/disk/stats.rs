//! What is told of the tier.

use std::fmt::Write;

/// What is on disk, and what became of it since the node began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheDiskStats {
    pub objects: u64,
    /// Whole blocks, of what is being written, too.
    pub bytes: u64,
    pub bytes_max: u64,
    /// Bodies, or parts of them, that were served from there.
    pub served: u64,
    pub written: u64,
    pub evicted: u64,
    /// Not kept since the disk could not keep up, had no room or had failed.
    pub not_kept: u64,
    /// Asked of a member since too much was being read.
    pub not_read: u64,
    /// Files that were not what they should be.
    pub corrupt: u64,
    /// What is there is known; until then nothing is written and what is not known yet is not served.
    pub indexed: bool,
    /// Why nothing is written for now.
    pub problem: Option<String>,
}

impl CacheDiskStats {
    /// As metrics.
    pub(crate) fn render(&self, out: &mut String) {
        for (name, kind, help, value) in [
            ("objects", "gauge", "Responses on disk.", self.objects),
            ("bytes", "gauge", "What they take there, and those that are being written.", self.bytes),
            ("max_bytes", "gauge", "What that may come to.", self.bytes_max),
            ("served_total", "counter", "Bodies, or parts of them, served from disk.", self.served),
            ("written_total", "counter", "Responses written to disk.", self.written),
            ("evicted_total", "counter", "Responses on disk that had to make room for others.", self.evicted),
            (
                "not_kept_total",
                "counter",
                "Long responses not kept since the disk could not keep up, had no room or had failed.",
                self.not_kept,
            ),
            (
                "not_read_total",
                "counter",
                "Requests that went to a member since too much was being read from disk.",
                self.not_read,
            ),
            ("corrupt_total", "counter", "Files that were not what they should be.", self.corrupt),
            (
                "failing",
                "gauge",
                "1: nothing is written for a while since the disk has failed; the log says how.",
                self.problem.is_some().into(),
            ),
        ] {
            let name = format!("trestle_cache_disk_{name}");
            // Writing to a String can't fail.
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        }
    }
}
