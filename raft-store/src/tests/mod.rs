//! What only whole stores show: openraft's own suite, a Raft node, crashes.
