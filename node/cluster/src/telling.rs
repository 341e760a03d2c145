//! What this node serves, told to other nodes when somebody asks them.

use std::time::Duration;

use trestle_dataplane::Plane;
use trestle_proto::v1::{FirewallHitsReply, KeptFlowsReply, LimitUseReply};

use crate::firewall;
use crate::kept;
use crate::raft::Teller;

/// A node that takes longer is left out.
pub(crate) const WITHIN: Duration = Duration::from_millis(700);

pub(crate) struct Telling(pub(crate) Plane);

impl Teller for Telling {
    fn firewall_hits(&self) -> FirewallHitsReply {
        firewall::counted(&self.0)
    }

    fn limit_use(&self, keys: &[u64]) -> LimitUseReply {
        let limits = self.0.limits();
        LimitUseReply { open: keys.iter().map(|key| limits.open(*key)).collect() }
    }

    fn kept_flows(&self, known: &[u64]) -> KeptFlowsReply {
        kept::told(&self.0.kernel_kept(), known)
    }
}
