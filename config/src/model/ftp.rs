//! FTP: control connections whose data connections are followed.

use std::ops::RangeInclusive;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FtpSettings {
    /// Where data connections are awaited; 1024 or above.
    pub ports: RangeInclusive<u16>,
    pub auth: FtpAuth,
}

/// What becomes of `AUTH`, after which a control connection can't be read any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FtpAuth {
    #[default]
    Pass,
    Refuse,
}
