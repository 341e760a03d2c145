//! Rates, and what they are limited by.

use crate::model::{LimitBy, Rate, RateUnit};
use crate::problem::{Fault, near_miss, shown};

use super::{Parsed, header_name, int};

/// As many a unit of time as a rate may have.
const COUNT_MAX: u64 = 1_000_000_000;

/// `100/s`, `10/m`, `1000/h`.
pub(crate) fn rate(text: &str) -> Parsed<Rate> {
    let fault = || Fault::new(format!("expected a rate such as `100/s` or `10/m`, not {}", shown(text)));
    let Some((count, unit)) = text.split_once('/') else {
        let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        return Err(if is_number { fault().near(Some(&format!("{text}/s"))) } else { fault() });
    };
    let per = match unit {
        "s" => RateUnit::Second,
        "m" => RateUnit::Minute,
        "h" => RateUnit::Hour,
        _ => {
            let meant = match unit.trim().to_ascii_lowercase().as_str() {
                "s" | "sec" | "second" => "s",
                "m" | "min" | "minute" => "m",
                "h" | "hour" => "h",
                _ => return Err(fault().help("the units are `s`, `m` and `h`")),
            };
            return Err(fault().near(Some(&format!("{}/{meant}", count.trim()))));
        }
    };
    if count == "0" {
        return Err(Fault::new("a rate of zero lets nothing through"));
    }
    let count = int(count, 1, COUNT_MAX)?;
    Ok(Rate { count: u32::try_from(count).unwrap_or(u32::MAX), per })
}

/// `client`, `route`, `listener`, `header:NAME`.
pub(crate) fn limit_by(text: &str) -> Parsed<LimitBy> {
    const WORDS: [&str; 3] = ["client", "route", "listener"];
    match text.split_once(':') {
        Some(("header", name)) => Ok(LimitBy::Header(header_name(name)?)),
        _ => match text {
            "client" => Ok(LimitBy::Client),
            "route" => Ok(LimitBy::Route),
            "listener" => Ok(LimitBy::Listener),
            _ => {
                let fault = Fault::new(format!("a rate can't be limited by {}", shown(text)));
                Err(match near_miss(text, WORDS.iter().copied()) {
                    Some(near) => fault.near(Some(near)),
                    None => fault.help("known are `client`, `header:NAME`, `route`, `listener`"),
                })
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_and_printed() {
        for text in ["1/s", "100/s", "10/m", "1000/h", "1000000000/s"] {
            assert_eq!(rate(text).expect(text).to_string(), text);
        }
        assert_eq!(rate("10/m").map(Rate::per_second).ok(), Some(10.0 / 60.0));
        for text in
            ["", "100", "0/s", "/s", "100/", "100/d", "-1/s", "1.5/s", "01/s", "100 /s", "1000000001/s"]
        {
            assert!(rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_limited_by_is_a_word_or_a_header() {
        for text in ["client", "route", "listener", "header:x-api-key"] {
            assert_eq!(limit_by(text).expect(text).to_string(), text);
        }
        assert_eq!(limit_by("header:X-Api-Key").ok(), Some(LimitBy::Header("x-api-key".to_owned())));
        for text in ["", "header", "header:", "header:a b", "cookie:a", "Client"] {
            assert!(limit_by(text).is_err(), "{text}");
        }
    }
}
