//! Names of rules of the web application firewall.

use super::Parsed;
use crate::model::WAF_RULES;
use crate::problem::{Fault, near_miss, shown};

/// A built-in rule or class, or the id of a rule of a file.
pub(crate) fn waf_rule(text: &str) -> Parsed<String> {
    if WAF_RULES.contains(&text) || text.parse::<u32>().is_ok_and(|id| id > 0) {
        return Ok(text.to_owned());
    }
    let fault = Fault::new(format!(
        "{} is none of `{}`, and no id of a rule of a file",
        shown(text),
        WAF_RULES.join("`, `")
    ));
    Err(fault.near(near_miss(text, WAF_RULES.iter().copied())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_named_or_numbered() {
        for text in ["sqli", "xss-tag", "942100"] {
            assert_eq!(waf_rule(text).unwrap(), text);
        }
        for text in ["", "0", "-1", "sql", "99999999999"] {
            assert!(waf_rule(text).is_err(), "{text}");
        }
    }
}
