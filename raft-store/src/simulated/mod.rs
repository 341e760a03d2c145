//! What stands in for the machine in the simulation (`sim/`): a disk, and with feature `sim` a
//! runtime on virtual time whose tasks belong to processes that can be killed and frozen.

mod disk;
#[cfg(feature = "sim")]
mod runtime;

pub use disk::{Fault, FileState, Machine};
#[cfg(feature = "sim")]
pub use runtime::{Process, Runtime};

/// How long the next transaction takes.
#[cfg(feature = "sim")]
pub type DiskPace = std::sync::Arc<dyn Fn() -> std::time::Duration + Send + Sync>;

/// splitmix64: repeatable from a seed, and nothing more is needed of it.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `sides`.
    pub fn below(&mut self, sides: u64) -> u64 {
        self.roll() % sides
    }
}
