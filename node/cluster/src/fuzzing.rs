//! Entries for fuzzers, with what must hold of any bytes. Their corpora are replayed as tests.

pub use crate::gossip::fuzzing::datagram;
pub use crate::raft::fuzzing::rpc;

/// What a member answers to a health check by DNS or SMTP.
pub fn answer(data: &[u8]) {
    crate::health::fuzz_answer(data);
}

#[cfg(test)]
mod tests {
    fn replay(target: &str, least: usize, entry: fn(&[u8])) {
        let corpus = format!("{}/fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
        let mut files = 0;
        for file in std::fs::read_dir(corpus).expect("the corpus is part of the repository") {
            entry(&std::fs::read(file.expect("listed").path()).expect("readable"));
            files += 1;
        }
        assert!(files >= least, "{target}: {files} files");
    }

    #[test]
    fn the_fuzz_corpora_break_nothing() {
        replay("gossip_datagram", 6, super::datagram);
        replay("rpc", 20, super::rpc);
        replay("answer", 5, super::answer);
    }
}
