//! What the guard needs of the kernel. Nothing here decides: failures are told in words, and the core
//! draws the conclusions.

mod linux;

use std::{net::IpAddr, os::fd::BorrowedFd, sync::Arc};

pub use linux::Linux;

use crate::core::{Mac, Picture, Place, Refused};

/// What has happened since the last look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Happened {
    /// Links or addresses are not as they were.
    pub network: bool,
    /// Somebody touched the fence.
    pub fence: bool,
    /// Who says that he has which address, and on which link.
    pub heard: Vec<(u32, IpAddr, Mac)>,
}

/// Each call returns soon: none waits for another process or for the network.
pub trait Kernel {
    /// See [`Effect::Sweep`](crate::core::Effect::Sweep).
    fn sweep(&mut self, configured: &[IpAddr], keep: &[IpAddr]) -> Result<Vec<IpAddr>, String>;
    /// What could not be had.
    fn attend(&mut self, links: &[(u32, String)]) -> Vec<String>;
    fn fence(&mut self, links: &[(u32, String)], addresses: &[IpAddr]) -> Result<(), String>;
    fn add(&mut self, place: &Place, seconds: u32) -> Result<(), String>;
    fn open(&mut self, place: &Place, deadline: u64) -> Result<(), Refused>;
    fn quiet(&mut self, place: &Place, until: u64) -> Result<(), Refused>;
    fn shut(&mut self, places: &mut dyn Iterator<Item = &Arc<Place>>) -> Result<(), String>;
    fn remove(&mut self, place: &Place) -> Result<(), String>;
    fn announce(&mut self, place: &Place);
    fn probe(&mut self, place: &Place);
    fn chance(
        &mut self,
        place: &Place,
        old_and_except: (&[IpAddr], &[(u16, u16)]),
        until: u64,
    ) -> Result<(), String>;
    fn end_chance(&mut self, place: &Place);
    /// Deletes what is not an address.
    fn dismantle(&mut self);

    /// Links and addresses as they are.
    fn picture(&mut self) -> Result<Picture, String>;
    /// Why the fence is not what it was set up to be; `None`: it is.
    fn fence_lost(&mut self) -> Option<String>;
    /// Readable when something has happened.
    fn watches(&self) -> Vec<BorrowedFd<'_>>;
    fn happened(&mut self) -> Happened;
}
