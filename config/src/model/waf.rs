//! The web application firewall, as a document has it.

use super::Content;

/// What an exception may name: each built-in rule, and the classes `sqli`, `xss` and `body`.
pub const WAF_RULES: &[&str] = &[
    "sqli",
    "sqli-tokens",
    "sqli-union",
    "sqli-select",
    "sqli-tautology",
    "sqli-break-out",
    "sqli-statement",
    "sqli-function",
    "sqli-schema",
    "sqli-clause",
    "sqli-loose",
    "sqli-words",
    "sqli-signs",
    "xss",
    "xss-markup",
    "xss-tag",
    "xss-handler",
    "xss-scheme",
    "xss-break-out",
    "xss-call",
    "xss-template",
    "xss-any-tag",
    "xss-signs",
    "body",
    "body-depth",
    "body-charset",
    "body-encoding",
    "body-over",
    "body-memory",
    "body-ambiguous",
    "body-doctype",
    "files-work",
];

/// Rule files of one policy, at most.
pub const WAF_FILES_MAX: usize = 16;

/// Exceptions of a policy, at most.
pub const WAF_EXCEPTIONS_MAX: usize = 64;

/// What requests are looked at for, and what happens then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waf {
    pub mode: WafMode,
    /// Rules up to this level hold, 1 to 4. Default 1.
    pub paranoia: u8,
    /// The built-in rules hold. Default.
    pub builtin: bool,
    /// Those of an operator, in ModSecurity's language, which make one set in their order.
    pub files: Vec<Content>,
    /// Bytes of a body that are held back and looked at; 0: bodies are not. Default 128 KiB.
    pub inspect_body: usize,
    /// A longer one is refused. Default: it passes, and its beginning is looked at.
    pub refuses_longer: bool,
    pub except: Vec<WafException>,
}

impl Default for Waf {
    fn default() -> Self {
        Self {
            mode: WafMode::Off,
            paranoia: 1,
            builtin: true,
            files: Vec::new(),
            inspect_body: 128 << 10,
            refuses_longer: false,
            except: Vec::new(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WafMode {
    #[default]
    Off,
    /// What is found is told, and passes.
    Detect,
    Block,
}

/// Where rules don't hold; what it does not say is any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WafException {
    pub rule: Option<WafRule>,
    /// With all below it.
    pub path: Option<String>,
    pub field: Option<WafField>,
}

/// Rules by a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WafRule {
    /// One of [`WAF_RULES`].
    Builtin(String),
    /// By its id, of a file.
    Id(u32),
}

/// A part of a request that has a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WafField {
    /// Of the query, or of a body.
    Parameter(String),
    /// Lower case.
    Header(String),
    Cookie(String),
    /// What of a body is in no parameter: a text, what is no JSON, a string of JSON outside of objects.
    Body,
}
