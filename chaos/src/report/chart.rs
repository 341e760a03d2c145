//! The timeline: faults, leader, VIP owners, throughput, errors and latency over one axis of time.

use std::fmt::Write;

use super::thin::{self, Column};
use super::{escape, number};
use crate::checkers::{Judgement, Verdict, count_of, fault_title, gap_length, held, moment, span};
use crate::trace::{FOREVER, FaultRecord, Load, MILLISECOND, SECOND, Time, Trace};

const WIDTH: f64 = 1_120.0;
/// Labels of lanes and axes stand left of it.
const LEFT: f64 = 132.0;
const RIGHT: f64 = WIDTH - 22.0;
const LANE: f64 = 18.0;
const ROW: f64 = 20.0;
/// Of the fault lane; more faults at once lose their label.
const ROWS_MAX: usize = 4;
/// Of one kind: lanes of VIPs and nodes, panels of latency.
const LANES_MAX: usize = 24;
const PANELS_MAX: usize = 6;
pub(super) const BARS_MAX: usize = 600;
/// With more faults, bars are a pixel wide: they need no numbers, and the page stays small.
const DENSE: usize = 100;
/// Of a letter of 11 px, on the wide side.
const LETTER: f64 = 6.4;

struct Chart<'a> {
    trace: &'a Trace,
    length: Time,
    dense: bool,
    svg: String,
    y: f64,
}

/// An SVG, without scripts and references.
pub(super) fn timeline(trace: &Trace, verdicts: &[Verdict]) -> String {
    let length = trace.run.length.max(SECOND / 10);
    let mut chart = Chart { trace, length, dense: trace.faults.len() > DENSE, svg: String::new(), y: 14.0 };
    chart.faults();
    chart.leaders();
    chart.owners(verdicts);
    chart.throughput();
    chart.errors();
    for load in trace.loads.iter().take(PANELS_MAX) {
        chart.latency(load);
    }
    let bottom = chart.y;
    let height = bottom + 30.0;
    let mut behind = String::new();
    for tick in ticks(length) {
        let x = chart.x(tick);
        let _ =
            write!(behind, "<line class=\"grid\" x1=\"{x:.1}\" y1=\"8\" x2=\"{x:.1}\" y2=\"{bottom:.1}\"/>");
        let y = bottom + 18.0;
        let _ = write!(behind, "<text class=\"s m\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", clock(tick));
    }
    for fault in trace.faults.iter().take(DENSE) {
        let (from, until) = (chart.x(fault.begun), chart.x(fault.whole.unwrap_or(length)));
        let _ = write!(
            behind,
            "<rect class=\"shade\" x=\"{from:.1}\" y=\"8\" width=\"{:.1}\" height=\"{:.1}\"/>",
            (until - from).max(0.5),
            bottom - 8.0
        );
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" \
         aria-label=\"Timeline of the run\">{behind}{}</svg>",
        chart.svg
    )
}

/// Some six to twelve round moments.
fn ticks(length: Time) -> impl Iterator<Item = Time> {
    let steps = [
        100, 200, 500, 1_000, 2_000, 5_000, 10_000, 15_000, 30_000, 60_000, 120_000, 300_000, 600_000,
        1_800_000,
    ];
    let step = steps.iter().map(|ms| ms * MILLISECOND).find(|step| length / step <= 12);
    let step = step.unwrap_or(3_600 * SECOND);
    (0..=length / step).map(move |tick| tick * step)
}

fn clock(time: Time) -> String {
    let (seconds, rest) = (time / SECOND, time % SECOND / (100 * MILLISECOND));
    match seconds {
        0..120 if rest > 0 => format!("{seconds}.{rest} s"),
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{}:{:02} min", seconds / 60, seconds % 60),
        _ => format!("{}:{:02} h", seconds / 3_600, seconds % 3_600 / 60),
    }
}

/// The least round number that is not below `value`.
fn round_up(value: f64) -> f64 {
    let power = 10_f64.powf(value.max(1.0).log10().floor());
    [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0]
        .iter()
        .map(|m| m * power)
        .find(|round| *round >= value)
        .unwrap_or(10.0 * power)
}

impl Chart<'_> {
    fn x(&self, time: Time) -> f64 {
        LEFT + time.min(self.length) as f64 / self.length as f64 * (RIGHT - LEFT)
    }

    /// Time that half a pixel stands for.
    fn pixel(&self) -> Time {
        (self.length as f64 / (RIGHT - LEFT) / 2.0) as Time
    }

    fn bar(&mut self, class: &str, (from, until): (Time, Time), top: f64, height: f64, title: &str) {
        let (x, end) = (self.x(from), self.x(until));
        let width = (end - x).max(1.0);
        let _ = write!(
            self.svg,
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height:.1}\""
        );
        if self.dense && width < 3.0 {
            self.svg.push_str("/>");
        } else {
            let _ = write!(self.svg, "><title>{}</title></rect>", escape(title));
        }
    }

    fn text(&mut self, class: &str, x: f64, y: f64, text: &str) {
        let _ = write!(self.svg, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", escape(text));
    }

    /// Left of the lanes.
    fn label(&mut self, text: &str, y: f64) {
        let room = ((LEFT - 16.0) / LETTER) as usize;
        self.text("e", LEFT - 8.0, y, &clip(text, room));
    }

    fn node_class(&self, node: &str) -> String {
        let index = self.trace.run.nodes.iter().position(|n| n == node).unwrap_or(7);
        format!("n{}", index % 8)
    }

    fn faults(&mut self) {
        let top = self.y;
        let faults = &self.trace.faults;
        // Where the next bar of a row may begin.
        let mut rows: Vec<f64> = Vec::new();
        for fault in faults.iter().take(BARS_MAX) {
            let until = fault.healed.unwrap_or(self.length);
            let whole = fault.whole.unwrap_or(self.length);
            let (x, end) = (self.x(fault.begun), self.x(whole));
            let text = format!("{} {} {}", fault.number + 1, fault.name, fault.victims.join(" "));
            let text = text.trim_end().to_owned();
            let needed = text.chars().count() as f64 * LETTER + 8.0;
            let inside = self.x(until) - x >= needed;
            // Beside its bar, before the end of the page; or left of it.
            let beside = !inside && end + needed <= RIGHT;
            let taken = if beside { end + needed } else { end + 2.0 };
            let row = match rows.iter().position(|free| *free <= x) {
                Some(row) => row,
                None if rows.len() < ROWS_MAX => {
                    rows.push(0.0);
                    rows.len() - 1
                }
                None => ROWS_MAX - 1,
            };
            let free = rows[row] <= x;
            let left = !inside && !beside && x - needed >= rows[row].max(LEFT);
            let y = top + row as f64 * ROW;
            let title = bar_title(fault);
            self.bar("heal", (until, whole), y, LANE, &title);
            self.bar("fault", (fault.begun, until), y, LANE, &title);
            let base = y + 13.0;
            if inside {
                self.text("inv", x + 4.0, base, &text);
            } else if beside && free {
                self.text("", end + 4.0, base, &text);
            } else if left && free {
                self.text("e", x - 4.0, base, &text);
            }
            rows[row] = rows[row].max(taken);
        }
        self.label("Faults", top + 13.0);
        self.y = top + rows.len().max(1) as f64 * ROW + 8.0;
    }

    fn lane(&mut self, label: &str) -> f64 {
        let top = self.y;
        let (x, width) = (LEFT, RIGHT - LEFT);
        let _ = write!(
            self.svg,
            "<rect class=\"lane\" x=\"{x}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{LANE}\"/>"
        );
        self.label(label, top + 13.0);
        self.y = top + LANE + 3.0;
        top
    }

    fn leaders(&mut self) {
        let top = self.lane("Leader");
        let leaders = &self.trace.leaders;
        for (index, leader) in leaders.iter().enumerate().take(BARS_MAX) {
            let until = leaders.get(index + 1).map_or(self.length, |next| next.at);
            let Some(node) = &leader.node else {
                self.bar("none", (leader.at, until), top + 2.0, LANE - 4.0, "no leader");
                continue;
            };
            let title = format!(
                "{node} leads in term {} from {} to {}",
                leader.term,
                moment(leader.at),
                moment(until)
            );
            self.bar(&self.node_class(node), (leader.at, until), top + 1.0, LANE - 2.0, &title);
            let room = self.x(until) - self.x(leader.at) - 8.0;
            let words = [format!("{node} · term {}", leader.term), node.clone()];
            let fits = words.iter().find(|w| w.chars().count() as f64 * LETTER <= room);
            if let Some(fits) = fits {
                let x = self.x(leader.at) + 4.0;
                self.text("inv", x, top + 13.0, fits);
            }
        }
        self.y += 5.0;
    }

    fn owners(&mut self, verdicts: &[Verdict]) {
        let mut lanes = 0;
        for vip in &self.trace.vips {
            let held = held(self.trace, vip);
            for node in &self.trace.run.nodes {
                if lanes == LANES_MAX {
                    return;
                }
                lanes += 1;
                let top = self.lane(&format!("{} on {node}", vip.name));
                let class = self.node_class(node);
                for mine in held.iter().filter(|held| held.node == *node) {
                    for found in thin::spans(&mine.possible, self.pixel()).into_iter().take(BARS_MAX) {
                        let (from, until) = (moment(found.0), moment(found.1));
                        let title = format!("{node} holds {} from {from} to {until}", mine.address);
                        self.bar(&class, found, top + 1.0, LANE - 2.0, &title);
                    }
                }
                let owners = verdicts.iter().filter(|v| v.name.contains("VIP owner"));
                let findings = owners.flat_map(|v| &v.findings).filter(|f| f.text.contains(node.as_str()));
                for finding in findings.take(BARS_MAX) {
                    let class = if finding.judgement == Judgement::Fail { "bad" } else { "unclear" };
                    self.bar(class, (finding.from, finding.until), top + LANE - 9.0, 8.0, &finding.text);
                }
            }
            self.y += 3.0;
        }
    }

    /// A plot with a title above it; its top and bottom.
    fn panel(&mut self, title: &str, height: f64, keys: &[(&str, &str)]) -> (f64, f64) {
        self.y += 10.0;
        self.text("h", LEFT, self.y + 8.0, title);
        let mut x = RIGHT;
        for (class, name) in keys.iter().rev() {
            x -= name.chars().count() as f64 * LETTER;
            let y = self.y + 8.0;
            self.text("s", x, y, name);
            x -= 14.0;
            let _ = write!(
                self.svg,
                "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"10\" height=\"8\"/>",
                y - 8.0
            );
            x -= 12.0;
        }
        let top = self.y + 16.0;
        self.y = top + height + 4.0;
        (top, top + height)
    }

    fn level(&mut self, y: f64, label: &str) {
        let _ = write!(
            self.svg,
            "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{RIGHT:.1}\" y2=\"{y:.1}\"/>"
        );
        self.text("s e", LEFT - 8.0, y + 4.0, label);
    }

    /// Times without a success, across a panel.
    fn gaps(&mut self, top: f64, bottom: f64) {
        let gaps = self
            .trace
            .loads
            .iter()
            .filter(|l| l.measures_outage)
            .flat_map(|l| l.gaps.iter().map(move |g| (l, g)));
        let mut worst: Vec<_> = gaps.collect();
        worst.sort_by_key(|(load, gap)| std::cmp::Reverse(gap_length(load, gap)));
        for (load, gap) in worst.into_iter().take(BARS_MAX / 4) {
            let long = gap_length(load, gap);
            let title = format!("{}: no success for {}, {} failed", load.name, span(long), gap.failed);
            self.bar("gap", (gap.from, gap.from + long), top, bottom - top, &title);
        }
    }

    fn points(&self, columns: &[Column], y: impl Fn(&Column) -> Option<f64>) -> Vec<Vec<(f64, f64)>> {
        let middle = thin::width(self.length) / 2;
        let mut parts = vec![Vec::new()];
        for column in columns {
            match y(column) {
                Some(y) => {
                    let point = (self.x(column.at + middle), y);
                    if let Some(part) = parts.last_mut() {
                        part.push(point);
                    }
                }
                None => parts.push(Vec::new()),
            }
        }
        parts.retain(|part| !part.is_empty());
        parts
    }

    fn line(&mut self, class: &str, parts: &[Vec<(f64, f64)>]) {
        let mut d = String::new();
        for part in parts {
            path(&mut d, part.iter().copied());
            if let [(x, y)] = part[..] {
                let _ = write!(d, "L{:.1} {y:.1}", x + 2.0);
            }
        }
        let _ = write!(self.svg, "<path class=\"{class}\" d=\"{d}\"/>");
    }

    /// Between two lines over the same columns.
    fn area(&mut self, class: &str, upper: &[Vec<(f64, f64)>], lower: &[Vec<(f64, f64)>]) {
        let mut d = String::new();
        for (upper, lower) in upper.iter().zip(lower) {
            path(&mut d, upper.iter().copied().chain(lower.iter().rev().copied()));
            d.push('Z');
        }
        let _ = write!(self.svg, "<path class=\"{class}\" d=\"{d}\"/>");
    }

    fn throughput(&mut self) {
        let seconds = self.trace.loads.iter().flat_map(|load| &load.seconds);
        let columns = thin::columns(seconds, self.length);
        let most = round_up(columns.iter().map(|c| c.ok).fold(1.0, f64::max));
        let title = "Throughput: answered requests a second, by when they were due";
        let (top, bottom) = self.panel(title, 84.0, &[("gap", "no success at the probe")]);
        for part in [0.0, 0.5, 1.0] {
            self.level(bottom - part * (bottom - top), &number(most * part));
        }
        self.gaps(top, bottom);
        let ok = self.points(&columns, |c| Some(bottom - c.ok / most * (bottom - top)));
        let floor = self.points(&columns, |_| Some(bottom));
        self.area("okf", &ok, &floor);
        self.line("okl", &ok);
    }

    fn errors(&mut self) {
        let seconds = self.trace.loads.iter().flat_map(|load| &load.seconds);
        let columns = thin::columns(seconds, self.length);
        let most = round_up(columns.iter().map(|c| c.failed + c.cut + c.wrong).fold(1.0, f64::max));
        let keys = [("bad", "failed"), ("cut", "cut"), ("wrong", "wrong")];
        let (top, bottom) = self.panel("Errors a second", 56.0, &keys);
        for part in [0.0, 1.0] {
            self.level(bottom - part * (bottom - top), &number(most * part));
        }
        let width = thin::width(self.length);
        for column in &columns {
            let mut base = bottom;
            for (class, name, value) in [
                ("bad", "failed", column.failed),
                ("cut", "cut", column.cut),
                ("wrong", "wrong", column.wrong),
            ] {
                if value > 0.0 {
                    let height = (value / most * (bottom - top)).max(1.5);
                    base -= height;
                    let until = (column.at + width * 9 / 10).min(self.length);
                    let title = format!("{} {name} a second at {}", number(value), moment(column.at));
                    self.bar(class, (column.at, until), base.max(top), height, &title);
                }
            }
        }
    }

    /// On a scale of powers of ten: what matters lies between 0.1 ms and seconds.
    fn latency(&mut self, load: &Load) {
        let columns = thin::columns(load.seconds.iter(), self.length);
        let most = columns.iter().map(|c| c.max).max().unwrap_or(0).max(MILLISECOND);
        let least = columns.iter().map(|c| c.p50).filter(|p| *p > 0).min().unwrap_or(MILLISECOND / 10);
        let (low, high) = ((least as f64).log10().floor(), (most as f64).log10().ceil());
        let high = high.max(low + 1.0);
        let title = format!("Latency of {} ({})", load.name, load.target);
        let keys = [("kp50", "p50"), ("kp99", "p99"), ("kmax", "max")];
        let (top, bottom) = self.panel(&title, 74.0, &keys);
        let place = |nanos: u64| {
            let part = ((nanos.max(1) as f64).log10() - low) / (high - low);
            bottom - part.clamp(0.0, 1.0) * (bottom - top)
        };
        let mut power = low;
        // Lines too close together would only blur.
        let step = ((high - low) / 4.0).ceil().max(1.0);
        while power <= high {
            let nanos = 10_f64.powf(power);
            self.level(place(nanos as u64), &power_of_ten(nanos));
            power += step;
        }
        let answered = |c: &Column, value: u64| (c.max > 0).then(|| place(value));
        let p50 = self.points(&columns, |c| answered(c, c.p50));
        let p99 = self.points(&columns, |c| answered(c, c.p99));
        let max = self.points(&columns, |c| answered(c, c.max));
        self.area("b2", &max, &p99);
        self.area("b1", &p99, &p50);
        self.line("max", &max);
        self.line("p99", &p99);
        self.line("p50", &p50);
    }
}

fn path(d: &mut String, points: impl Iterator<Item = (f64, f64)>) {
    for (index, (x, y)) in points.enumerate() {
        let _ = write!(d, "{}{x:.1} {y:.1}", if index == 0 { 'M' } else { 'L' });
    }
}

fn power_of_ten(nanos: f64) -> String {
    match nanos {
        n if n >= 1e9 => format!("{:.0} s", n / 1e9),
        n if n >= 1e6 => format!("{:.0} ms", n / 1e6),
        n if n >= 1e3 => format!("{:.0} µs", n / 1e3),
        n => format!("{n:.0} ns"),
    }
}

fn bar_title(fault: &FaultRecord) -> String {
    let mut text = format!("{} begun at {}", fault_title(fault), moment(fault.begun));
    if let Some(healed) = fault.healed {
        let _ = write!(text, ", undone at {}", moment(healed));
    }
    let whole = fault.whole.unwrap_or(FOREVER);
    let _ = write!(text, ", whole at {}, {}", moment(whole), count_of(fault.proofs.len(), "proof"));
    text
}

fn clip(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        text.to_owned()
    } else {
        text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_numbers_and_not_too_many() {
        for length in [SECOND / 2, 3 * SECOND, 47 * SECOND, 130 * SECOND, 3_600 * SECOND, 4 * 3_600 * SECOND]
        {
            let count = ticks(length).count();
            assert!((3..=14).contains(&count), "{count} ticks for {length}");
        }
        assert_eq!((round_up(3.5), round_up(640.0), round_up(0.0)), (4.0, 800.0, 1.0));
        assert_eq!((clock(1_500 * MILLISECOND), clock(150 * SECOND)), ("1.5 s".into(), "2:30 min".into()));
    }
}
