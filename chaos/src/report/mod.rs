//! The report: one page that needs nothing else (no script, no network), small enough for a bug tracker,
//! and the same as JSON. Verdicts come first, then what to run to see it again.

mod chart;
#[cfg(test)]
mod tests;
mod thin;

use std::fmt::Write;

use serde::Serialize;

use crate::checkers::{
    Finding, Judgement, Verdict, count_of, fault_title, gap_length, moment, outage, passes, span,
};
use crate::trace::{FaultRecord, Load, Time, Trace};

/// Rows of each table, and of each list below one.
const ROWS_MAX: usize = 100;
const EXAMPLES_MAX: usize = 20;
/// Letters of a text that came from outside.
const TEXT_MAX: usize = 400;

#[derive(Serialize)]
struct Json<'a> {
    pass: bool,
    verdicts: &'a [Verdict],
    trace: &'a Trace,
}

/// All there is, for programs.
///
/// # Errors
/// None that serde knows of for these types.
pub fn json(trace: &Trace, verdicts: &[Verdict]) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Json { pass: passes(verdicts), verdicts, trace })
}

/// The page.
#[must_use]
pub fn html(trace: &Trace, verdicts: &[Verdict]) -> String {
    let run = &trace.run;
    let mut page = String::with_capacity(128 << 10);
    let _ = write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\
         <title>{} · seed {} · {}</title><style>{}</style></head><body>",
        escape(&run.scenario),
        run.seed,
        word(overall(verdicts)),
        include_str!("style.css")
    );
    head(&mut page, trace, verdicts);
    verdict_table(&mut page, verdicts);
    let _ = write!(page, "<h2>Timeline</h2><div class=\"scroll\">{}</div>", chart::timeline(trace, verdicts));
    page.push_str(
        "<p class=\"soft\">Shaded: from a fault's beginning until the cluster is whole again; its bar is strong \
         while it is in force. A VIP's bar is when a node held the address with an open fence, by the kernel's \
         own events. Latency counts from when a request was due. Point at a bar for its numbers.</p>",
    );
    rest(&mut page, trace.faults.len(), chart::BARS_MAX);
    fault_table(&mut page, trace);
    load_table(&mut page, trace);
    examples(&mut page, trace);
    notes(&mut page, trace);
    page.push_str("</body></html>\n");
    page
}

fn overall(verdicts: &[Verdict]) -> Judgement {
    let any = |judgement| verdicts.iter().any(|v| v.judgement == judgement);
    if passes(verdicts) {
        Judgement::Pass
    } else if any(Judgement::Fail) {
        Judgement::Fail
    } else {
        Judgement::Unknown
    }
}

fn class(judgement: Judgement) -> &'static str {
    match judgement {
        Judgement::Pass => "pass",
        Judgement::Fail => "fail",
        Judgement::Unknown => "unknown",
        Judgement::Skipped => "skipped",
    }
}

fn word(judgement: Judgement) -> &'static str {
    match judgement {
        Judgement::Pass => "passed",
        Judgement::Fail => "FAILED",
        Judgement::Unknown => "not shown",
        Judgement::Skipped => "skipped",
    }
}

fn badge(judgement: Judgement, more: &str) -> String {
    format!("<span class=\"badge {} {more}\">{}</span>", class(judgement), word(judgement))
}

fn head(page: &mut String, trace: &Trace, verdicts: &[Verdict]) {
    let run = &trace.run;
    let _ = write!(page, "<h1>{} {}</h1>", escape(&run.scenario), badge(overall(verdicts), "big"));
    let version =
        if run.version.is_empty() { String::new() } else { format!(" · {}", escape(&run.version)) };
    let _ = write!(
        page,
        "<p class=\"soft\">environment {} · seed {} · {} · {} · {}, {}{version}</p>",
        escape(&run.environment),
        run.seed,
        span(run.length),
        count_of(trace.faults.len(), "fault"),
        count_of(run.nodes.len(), "node"),
        count_of(run.backends.len(), "backend"),
    );
    let _ = write!(page, "<p>To run it again:</p><pre>{}</pre>", escape(&run.again));
    if let Some(why) = &run.interrupted {
        let _ = write!(page, "<p class=\"fail\">Interrupted: {}</p>", escape(why));
    }
}

fn verdict_table(page: &mut String, verdicts: &[Verdict]) {
    page.push_str("<h2>Verdicts</h2><table>");
    for verdict in verdicts {
        let _ = write!(
            page,
            "<tr><td class=\"w\">{}</td><td class=\"w\">{}</td><td>{}",
            badge(verdict.judgement, ""),
            escape(&verdict.name),
            escape(&verdict.text)
        );
        if verdict.findings.len() > 1 {
            let total = verdict.findings.len() + verdict.more;
            let _ = write!(page, "<details><summary>all {total}</summary><ul>");
            for Finding { from, judgement, text, .. } in &verdict.findings {
                let at = moment(*from);
                let _ = write!(page, "<li class=\"{}\">{at}: {}</li>", class(*judgement), escape(text));
            }
            if verdict.more > 0 {
                let _ = write!(page, "<li>and {} more</li>", verdict.more);
            }
            page.push_str("</ul></details>");
        }
        page.push_str("</td></tr>");
    }
    page.push_str("</table>");
}

fn table(page: &mut String, title: &str, columns: &[(&str, bool)]) {
    let _ = write!(page, "<h2>{title}</h2><div class=\"scroll\"><table><tr>");
    for (name, right) in columns {
        let class = if *right { " class=\"r\"" } else { "" };
        let _ = write!(page, "<th{class}>{name}</th>");
    }
    page.push_str("</tr>");
}

fn cell(page: &mut String, text: &str) {
    let _ = write!(page, "<td class=\"r\">{}</td>", escape(text));
}

fn fault_table(page: &mut String, trace: &Trace) {
    let columns = [
        ("Fault", false),
        ("Begun", true),
        ("In force after", true),
        ("Held", true),
        ("Whole after", true),
        ("Allowed", true),
        ("Outage seen", true),
        ("Allowed", true),
        ("Took place", false),
    ];
    table(page, "Faults", &columns);
    for (index, fault) in trace.faults.iter().enumerate().take(ROWS_MAX) {
        let _ = write!(page, "<tr><td>{}</td>", escape(&fault_title(fault)));
        let since = |later: Option<Time>, earlier: Option<Time>| {
            later.zip(earlier).map_or("never".to_owned(), |(l, e)| span(l.saturating_sub(e)))
        };
        cell(page, &moment(fault.begun));
        cell(page, &since(fault.in_force, Some(fault.begun)));
        cell(page, &since(fault.healed, fault.in_force));
        cell(page, &since(fault.whole, fault.healed));
        cell(page, &span(fault.bounds.heal));
        let seen = fault.in_force.map(|_| worst_outage(trace, index).map_or("none".to_owned(), span));
        cell(page, &seen.unwrap_or_else(|| "never in force".to_owned()));
        cell(page, &fault.bounds.outage.map_or("no failure".to_owned(), span));
        proofs(page, fault);
        page.push_str("</tr>");
    }
    page.push_str("</table></div>");
    rest(page, trace.faults.len(), ROWS_MAX);
}

/// The longest outage that a client saw of the fault `index`, at nodes that were not hit themselves.
#[must_use]
pub fn worst_outage(trace: &Trace, index: usize) -> Option<Time> {
    let fault = trace.faults.get(index)?;
    let measured = trace.loads.iter().filter(|l| l.measures_outage);
    let counted = measured.filter(|l| l.node.as_ref().is_none_or(|node| !fault.victims.contains(node)));
    counted.filter_map(|load| outage(trace, load, index)).map(|(_, long)| long).max()
}

fn proofs(page: &mut String, fault: &FaultRecord) {
    let good = fault.proofs.iter().filter(|p| p.holds).count();
    let all = good == fault.proofs.len() && good > 0;
    let class = if all { "pass" } else { "fail" };
    let _ = write!(
        page,
        "<td><details><summary class=\"{class}\">{good} of {}</summary><ul>",
        count_of(fault.proofs.len(), "proof")
    );
    for proof in fault.proofs.iter().take(EXAMPLES_MAX) {
        let class = if proof.holds { "pass" } else { "fail" };
        let _ = write!(page, "<li class=\"{class}\">{}: {}</li>", escape(&proof.claim), escape(&proof.seen));
    }
    page.push_str("</ul></details></td>");
}

fn load_table(page: &mut String, trace: &Trace) {
    let columns = [
        ("Load", false),
        ("Target", false),
        ("Due", true),
        ("Answered", true),
        ("Failed", true),
        ("Cut", true),
        ("Wrong", true),
        ("p50", true),
        ("p99", true),
        ("p99.9", true),
        ("max", true),
        ("Longest gap", true),
        ("Itself late", true),
    ];
    table(page, "Load", &columns);
    for load in &trace.loads {
        let Load { total, .. } = load;
        let broken = if load.complete { "" } else { " (did not tell all that it saw)" };
        let kind = format!("{:?}", load.kind).to_lowercase();
        let name = format!("{} ({kind}, {} a second){broken}", load.name, number(load.rate));
        let _ = write!(page, "<tr><td>{}</td><td class=\"w\">{}</td>", escape(&name), escape(&load.target));
        for value in [total.due, total.ok, total.failed, total.cut, total.wrong] {
            cell(page, &number(value as f64));
        }
        for value in [total.p50, total.p99, total.p999, total.max] {
            cell(page, &span(value));
        }
        let gap = load.gaps.iter().map(|gap| gap_length(load, gap)).max();
        cell(page, &gap.map_or("none".to_owned(), span));
        cell(page, &span(total.lag));
        page.push_str("</tr>");
    }
    page.push_str("</table></div>");
}

fn examples(page: &mut String, trace: &Trace) {
    for load in trace.loads.iter().filter(|l| !l.wrong.is_empty() || !l.failures.is_empty()) {
        let (wrong, failed) = (load.wrong.len(), load.failures.len());
        let _ = write!(
            page,
            "<details><summary>{}: the first of {} and {}</summary><ul>",
            escape(&load.name),
            count_of(wrong, "wrong answer"),
            count_of(failed, "failure")
        );
        let wrong = load.wrong.iter().take(EXAMPLES_MAX).map(|blunder| ("fail", blunder));
        let failures = load.failures.iter().take(EXAMPLES_MAX).map(|blunder| ("soft", blunder));
        for (class, blunder) in wrong.chain(failures) {
            let _ =
                write!(page, "<li class=\"{class}\">{}: {}</li>", moment(blunder.at), escape(&blunder.text));
        }
        page.push_str("</ul></details>");
    }
}

fn notes(page: &mut String, trace: &Trace) {
    let lacks =
        trace.run.lacks.iter().map(|lack| format!("not checked here ({:?}): {}", lack.part, lack.why));
    let dropped =
        trace.dropped.iter().map(|(name, lost)| format!("{lost} {name} found no room in the trace"));
    let notes = trace.notes.iter().map(|note| format!("{}: {}", moment(note.at), note.text));
    let all: Vec<_> = lacks.chain(dropped).chain(notes).collect();
    if all.is_empty() {
        return;
    }
    page.push_str("<h2>Notes</h2><ul>");
    for note in all.iter().take(ROWS_MAX) {
        let _ = write!(page, "<li>{}</li>", escape(note));
    }
    page.push_str("</ul>");
    rest(page, all.len(), ROWS_MAX);
}

fn rest(page: &mut String, all: usize, shown: usize) {
    if all > shown {
        let _ = write!(page, "<p class=\"soft\">and {} more, in the JSON</p>", all - shown);
    }
}

/// With thousands apart.
fn number(value: f64) -> String {
    if value < 10.0 && value.fract() > 0.05 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// What came from outside, as text: no markup, no control characters, not too long.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars().take(TEXT_MAX) {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c if c.is_control() => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    if text.chars().nth(TEXT_MAX).is_some() {
        safe.push('…');
    }
    safe
}
