//! How busy the machine was while a run took place: who misses a bound of time wants to know.

/// What `/proc/stat` has counted for all cores together, in ticks.
#[derive(Clone, Copy)]
pub(super) struct Cores {
    idle: u64,
    stolen: u64,
    all: u64,
}

impl Cores {
    /// `None` where the kernel does not tell.
    pub(super) fn now() -> Option<Self> {
        Self::read(&std::fs::read_to_string("/proc/stat").ok()?)
    }

    /// The first line is `cpu user nice system idle iowait irq softirq steal guest guest_nice`, where
    /// guests are part of the first two (proc_stat(5)).
    fn read(text: &str) -> Option<Self> {
        let line = text.lines().next()?.strip_prefix("cpu ")?;
        let ticks: Vec<u64> =
            line.split_ascii_whitespace().take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
        let [_, _, _, idle, waiting, _, _, stolen] = ticks[..] else { return None };
        Some(Self { idle: idle + waiting, stolen, all: ticks.iter().sum() })
    }

    /// In words; `None` if no tick has passed.
    pub(super) fn until(self, end: Self) -> Option<String> {
        let all = end.all.checked_sub(self.all).filter(|all| *all > 0)?;
        let percent = |from: u64, to: u64| to.saturating_sub(from) * 100 / all;
        let (idle, stolen) = (percent(self.idle, end.idle), percent(self.stolen, end.stolen));
        Some(format!("the machine's cores were idle for {idle} % of the time, and stolen for {stolen} %"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_become_shares() {
        let read = |line: &str| Cores::read(&format!("{line}\ncpu0 1 1 1 1 1 1 1 1 1 1\n"));
        let began = read("cpu  100 0 50 1000 10 0 5 3 7 0").unwrap();
        let end = read("cpu  140 0 60 1030 10 0 5 23 9 0").unwrap();
        let text = began.until(end).unwrap();
        assert_eq!(text, "the machine's cores were idle for 30 % of the time, and stolen for 20 %");
        assert!(began.until(began).is_none(), "no tick has passed");
        assert!(read("cpu  1 2 3").is_none());
        assert!(read("intr 5").is_none());
    }
}
