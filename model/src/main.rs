//! Checks the protocol and says how far. `--deep` goes further than the tests do (three minutes, half a
//! GB of memory); `--bounds` goes where one wants.

use std::process::ExitCode;
use std::time::Instant;

use stateright::{Checker, Model};
use trestle_model::{Bounds, Lease, Rules};

fn check<const N: usize>(bounds: Bounds) -> bool {
    let start = Instant::now();
    let lease = Lease::<N> { rules: Rules::ALL, bounds };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let checker = lease.checker().threads(threads).spawn_bfs().join();
    println!(
        "{N} nodes, {bounds:?}: {} states, depth {}, {:?}",
        checker.unique_state_count(),
        checker.max_depth(),
        start.elapsed()
    );
    let mut holds = true;
    for property in lease.properties() {
        let found = checker.discovery(property.name);
        let expected = found.is_some() != property.expectation.discovery_is_failure();
        holds &= expected;
        println!("  {} {}", if expected { "ok  " } else { "FAIL" }, property.name);
        if let Some(path) = found.filter(|_| !expected) {
            println!("{path:#?}");
        }
    }
    holds
}

fn main() -> ExitCode {
    let mut holds = true;
    match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => holds &= check::<2>(Bounds::TESTS),
        [deep] if deep == "--deep" => {
            holds &= check::<2>(Bounds { faults: 4, epochs: 4, sessions: 3, ..Bounds::TESTS });
            holds &= check::<2>(Bounds { faults: 3, asks: 2, ..Bounds::TESTS });
            holds &= check::<2>(Bounds { faults: 3, ttl: 3, ..Bounds::TESTS });
            holds &= check::<3>(Bounds { asks: 2, epochs: 2, ..Bounds::TESTS });
            holds &= check::<3>(Bounds { faults: 3, epochs: 2, ..Bounds::TESTS });
        }
        [free] if free.starts_with("--bounds=") => {
            // nodes,faults,epochs,sessions,asks,ttl
            let n: Vec<u8> = free["--bounds=".len()..].split(',').filter_map(|n| n.parse().ok()).collect();
            let &[nodes, faults, epochs, sessions, asks, ttl] = n.as_slice() else { return usage() };
            let bounds =
                Bounds { faults, epochs, sessions, asks: usize::from(asks), ttl, freeze_after_write: false };
            holds &= match nodes {
                2 => check::<2>(bounds),
                3 => check::<3>(bounds),
                _ => return usage(),
            };
        }
        _ => return usage(),
    }
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn usage() -> ExitCode {
    eprintln!("usage: trestle-model [--deep | --bounds=NODES,FAULTS,EPOCHS,SESSIONS,ASKS,TTL]");
    ExitCode::from(2)
}
