//! Virtual IPs: who should own which, and this node's side of owning one.

pub mod choice;
