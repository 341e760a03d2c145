//! No request was answered by the wrong backend or with the wrong bytes.

use super::healing::count;
use super::{Inquiry, Verdict};
use crate::trace::{Part, SECOND, Trace};

pub(super) fn right(trace: &Trace) -> Verdict {
    let mut inquiry = Inquiry::new("right answers");
    inquiry.needs(trace, &["loads"]);
    if let Some(why) = trace.run.lack(Part::Loads) {
        return inquiry.skip(why);
    }
    let length = trace.run.length;
    let mut answers = 0;
    for load in &trace.loads {
        answers += load.total.ok;
        if load.total.ok == 0 {
            inquiry.unknown(0, length, format!("{} had no answer that could be checked", load.name));
        }
        if !load.complete {
            inquiry.unknown(0, length, format!("{} did not tell all that it saw", load.name));
        }
        for wrong in &load.wrong {
            inquiry.fail(wrong.at, wrong.at, format!("{}: {}", load.name, wrong.text));
        }
        // Also where no example was kept.
        if load.wrong.is_empty() {
            let seconds = load.seconds.iter().filter(|s| s.wrong > 0);
            for second in seconds {
                let text = format!("{}: {}", load.name, count(second.wrong as usize, "wrong answer"));
                inquiry.fail(second.at, second.at + SECOND, text);
            }
            if load.total.wrong > 0 {
                let text = format!("{}: {}", load.name, count(load.total.wrong as usize, "wrong answer"));
                inquiry.fail(0, length, text);
            }
        }
    }
    if trace.loads.is_empty() {
        inquiry.unknown(0, length, "there was no load");
    }
    inquiry.close(format!("{answers} answers of {} were right", count(trace.loads.len(), "load")))
}

#[cfg(test)]
mod tests {
    use super::super::testing::good;
    use super::super::{Judgement, judge};
    use super::*;
    use crate::trace::Blunder;

    #[test]
    fn a_wrong_answer_is_found() {
        let mut trace = good();
        assert_eq!(right(&trace).judgement, Judgement::Pass);
        trace.loads[0].wrong.push(Blunder { at: 5, text: "asked for b1, answered by b2".into() });
        let verdict = right(&trace);
        assert_eq!(verdict.judgement, Judgement::Fail);
        assert!(verdict.text.contains("answered by b2"), "{}", verdict.text);
        let mut trace = good();
        trace.loads[0].total.wrong = 1;
        assert_eq!(right(&trace).judgement, Judgement::Fail, "one without an example");
        let mut trace = good();
        trace.loads[0].seconds[2].wrong = 1;
        assert!(judge(&trace).iter().any(|v| v.judgement == Judgement::Fail));
    }

    #[test]
    fn nothing_checked_stays_unknown() {
        let mut trace = good();
        trace.loads[0].total.ok = 0;
        assert_eq!(right(&trace).judgement, Judgement::Unknown);
        trace.loads.clear();
        assert_eq!(right(&trace).judgement, Judgement::Unknown);
    }
}
