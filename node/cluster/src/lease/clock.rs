//! The clock on which leases live: CLOCK_BOOTTIME, which goes on while the machine is suspended
//! (`Instant` stands still then, and a lease would outlive its end).
//!
//! A virtual machine that is paused may see no clock move at all; no lease inside the guest can
//! exclude an overlap after that, it only bounds it.

use std::fmt;
use std::ops::Add;
use std::time::Duration;

use futures::future::BoxFuture;

/// A moment on this machine's boot-time clock. Moments of two machines can't be compared.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BootTime(Duration);

impl BootTime {
    pub const fn from_boot(since: Duration) -> Self {
        Self(since)
    }

    pub const fn since_boot(self) -> Duration {
        self.0
    }

    /// From `earlier` to here; zero if it is later.
    pub fn since(self, earlier: BootTime) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for BootTime {
    type Output = BootTime;

    fn add(self, time: Duration) -> BootTime {
        BootTime(self.0.saturating_add(time))
    }
}

impl fmt::Debug for BootTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "boot+{:?}", self.0)
    }
}

/// Where the present moment, and waiting for a later one, come from.
pub trait Clock: Send + Sync + 'static {
    fn now(&self) -> BootTime;

    /// Returns at or after `at`. Dropping it leaves nothing behind.
    fn sleep_until(&self, at: BootTime) -> BoxFuture<'static, ()>;
}

/// The machine's clock. Sleeps by tokio's timer, which stands still in suspend: a sleeper may wake
/// late and looks at [`Clock::now`] again.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> BootTime {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        // Neither is negative on this clock.
        BootTime(Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32))
    }

    fn sleep_until(&self, at: BootTime) -> BoxFuture<'static, ()> {
        let pause = at.since(self.now());
        Box::pin(tokio::time::sleep(pause))
    }
}

#[cfg(test)]
pub(crate) use manual::ManualClock;

#[cfg(test)]
mod manual {
    use tokio::sync::watch;

    use super::*;

    /// Moves only when told to.
    #[derive(Clone, Debug)]
    pub(crate) struct ManualClock(watch::Sender<BootTime>);

    impl ManualClock {
        pub(crate) fn new() -> Self {
            Self(watch::Sender::new(BootTime(Duration::from_secs(1_000))))
        }

        pub(crate) fn advance(&self, time: Duration) {
            self.0.send_modify(|now| *now = *now + time);
        }
    }

    impl Clock for ManualClock {
        fn now(&self) -> BootTime {
            *self.0.borrow()
        }

        fn sleep_until(&self, at: BootTime) -> BoxFuture<'static, ()> {
            let mut now = self.0.subscribe();
            Box::pin(async move {
                // The sender lives as long as any clone of the clock; without one, time has ended.
                if now.wait_for(|now| *now >= at).await.is_err() {
                    std::future::pending::<()>().await;
                }
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_clock_goes_forward() {
        let before = SystemClock.now();
        std::thread::sleep(Duration::from_millis(2));
        assert!(SystemClock.now().since(before) >= Duration::from_millis(2));
        assert!(before.since_boot() > Duration::ZERO);
    }

    #[tokio::test]
    async fn a_manual_sleeper_wakes_at_its_moment() {
        let clock = ManualClock::new();
        let sleeper = tokio::spawn(clock.sleep_until(clock.now() + Duration::from_secs(5)));
        clock.advance(Duration::from_secs(4));
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished());
        clock.advance(Duration::from_secs(1));
        sleeper.await.expect("the sleeper ends");
    }
}
