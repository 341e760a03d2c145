//! What a node's VIP side and its lease side say to each other, and how that goes over the wire.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use trestle_proto::v1;
use uuid::Uuid;

use super::clock::BootTime;

/// VIPs in one renewal: twice what a config may have, for those of it and of the one before.
pub(crate) const CLAIMS_MAX: usize = 128;
/// Addresses in one report: one a family.
const VIA_MAX: usize = 2;

pub type VipName = Arc<str>;

/// A VIP as a node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VipReport {
    /// The node could hold it now.
    pub usable: bool,
    /// The kernel fences it by the lease's time.
    pub fenced: bool,
    /// The node's own addresses beside it, one a family.
    pub via: Vec<IpAddr>,
    /// It is ready to take over by plan.
    pub chance_ready: bool,
    /// Not usable, since it failed lately; but if nobody else can hold it, it may be tried again.
    pub last_resort: bool,
}

/// A right that was let go of, to be told to the leader until the state says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LetGo {
    pub session: Uuid,
    pub epoch: u64,
}

/// What a node tells of itself with each renewal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeReport {
    pub guard: Option<Uuid>,
    pub ready: bool,
    pub leaving: bool,
    /// It is overloaded, and refuses clients.
    pub strained: bool,
    /// How long a write to its disk takes at present; known to the leader only.
    pub disk: Duration,
    pub vips: BTreeMap<VipName, VipReport>,
}

/// A disk on which a write takes longer is no place for the lead.
pub const DISK_SLOW: Duration = Duration::from_millis(100);

/// What a node wants of leases on VIPs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VipWishes {
    pub report: NodeReport,
    /// VIPs to renew, with the epoch under which this node's guard was given each.
    pub hold: BTreeMap<VipName, u64>,
    pub gone: BTreeMap<VipName, Vec<LetGo>>,
}

/// What became of one that is to be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VipLease {
    pub epoch: u64,
    /// When the last granted renewal was sent.
    pub sent: BootTime,
    /// End of the lease. Before `sent`: it was lost for good.
    pub until: BootTime,
    /// Its new owner is ready.
    pub yields: bool,
}

/// VIPs whose owner the leader does not hear, and when its lease has ended at the latest.
pub type VipWaits = BTreeMap<VipName, BootTime>;

pub type VipLeases = BTreeMap<VipName, VipLease>;

impl NodeReport {
    pub(crate) fn to_wire(&self) -> (Bytes, Vec<v1::VipReport>) {
        let guard = self.guard.map(|guard| Bytes::copy_from_slice(guard.as_bytes())).unwrap_or_default();
        let report = |(vip, report): (&VipName, &VipReport)| v1::VipReport {
            vip: vip.to_string(),
            usable: report.usable,
            fenced: report.fenced,
            via: report.via.iter().map(address_bytes).collect(),
            chance_ready: report.chance_ready,
            last_resort: report.last_resort,
        };
        (guard, self.vips.iter().map(report).collect())
    }

    /// # Errors
    /// In words, what is wrong with it.
    pub(crate) fn of_wire(request: &v1::RenewRequest) -> Result<Self, String> {
        if request.vips.len() > CLAIMS_MAX || request.claims.len() > CLAIMS_MAX {
            return Err(format!("more than {CLAIMS_MAX} VIPs"));
        }
        let report = |report: &v1::VipReport| {
            let via = report.via.iter().take(VIA_MAX).map(|bytes| address_of(bytes));
            let seen = VipReport {
                usable: report.usable,
                fenced: report.fenced,
                via: via.collect::<Result<_, _>>()?,
                chance_ready: report.chance_ready,
                last_resort: report.last_resort,
            };
            Ok::<_, String>((VipName::from(report.vip.as_str()), seen))
        };
        Ok(Self {
            guard: match &request.guard[..] {
                [] => None,
                bytes => Some(Uuid::from_slice(bytes).map_err(|e| format!("guard: {e}"))?),
            },
            ready: request.ready,
            disk: Duration::from_millis(request.disk_ms.into()),
            leaving: request.leaving,
            strained: request.strained,
            vips: request.vips.iter().map(report).collect::<Result<_, _>>()?,
        })
    }
}

fn address_bytes(address: &IpAddr) -> Bytes {
    match address {
        IpAddr::V4(v4) => Bytes::copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => Bytes::copy_from_slice(&v6.octets()),
    }
}

fn address_of(bytes: &[u8]) -> Result<IpAddr, String> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .map_err(|_| format!("an address of {} bytes", bytes.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_reads_back_as_it_was_written() {
        let report = NodeReport {
            guard: Some(Uuid::from_u128(7)),
            ready: true,
            leaving: true,
            strained: true,
            disk: Duration::from_millis(20),
            vips: BTreeMap::from([(
                VipName::from("front"),
                VipReport {
                    usable: true,
                    fenced: true,
                    via: vec![[198, 18, 0, 11].into(), "2001:db8::11".parse().unwrap()],
                    chance_ready: true,
                    last_resort: true,
                },
            )]),
        };
        let (guard, vips) = report.to_wire();
        let said = v1::RenewRequest {
            ready: true,
            leaving: true,
            strained: true,
            disk_ms: 20,
            ..Default::default()
        };
        let mut request = v1::RenewRequest { guard, vips, ..said };
        assert_eq!(NodeReport::of_wire(&request), Ok(report));
        request.vips[0].via.push(Bytes::from_static(b"12345"));
        assert!(NodeReport::of_wire(&request).is_ok(), "one a family is read, no more");
        request.vips[0].via.remove(0);
        assert!(NodeReport::of_wire(&request).is_err_and(|e| e.contains("5 bytes")));
        request.vips = vec![v1::VipReport::default(); CLAIMS_MAX + 1];
        assert!(NodeReport::of_wire(&request).is_err());
    }
}
