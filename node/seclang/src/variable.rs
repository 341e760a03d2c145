//! What rules look at: collections of a request and of its transaction, and parts of them.

use crate::pattern::Pattern;

macro_rules! collections {
    ($($(#[$doc:meta])* $variant:ident = $first:literal $(| $name:literal)*;)+) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) enum Collection { $($(#[$doc])* $variant,)+ }

        impl Collection {
            pub(crate) const COUNT: usize = [$(Self::$variant,)+].len();

            /// Its first name.
            pub(crate) fn label(self) -> &'static str {
                match self {
                    $(Self::$variant => $first,)+
                }
            }

            fn named(name: &str) -> Option<Self> {
                match name.to_ascii_uppercase().as_str() {
                    $($first $(| $name)* => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }
    };
}

collections! {
    Args = "ARGS";
    ArgsNames = "ARGS_NAMES";
    ArgsGet = "ARGS_GET";
    ArgsGetNames = "ARGS_GET_NAMES";
    ArgsPost = "ARGS_POST";
    ArgsPostNames = "ARGS_POST_NAMES";
    ArgsSize = "ARGS_COMBINED_SIZE";
    Headers = "REQUEST_HEADERS";
    HeadersNames = "REQUEST_HEADERS_NAMES";
    Cookies = "REQUEST_COOKIES";
    CookiesNames = "REQUEST_COOKIES_NAMES";
    Uri = "REQUEST_URI";
    UriRaw = "REQUEST_URI_RAW";
    Filename = "REQUEST_FILENAME";
    Basename = "REQUEST_BASENAME";
    Line = "REQUEST_LINE";
    Method = "REQUEST_METHOD";
    Protocol = "REQUEST_PROTOCOL";
    Query = "QUERY_STRING";
    PathInfo = "PATH_INFO";
    Body = "REQUEST_BODY";
    BodyLength = "REQUEST_BODY_LENGTH";
    BodyProcessor = "REQBODY_PROCESSOR";
    /// What stands for something that went well.
    Zero = "REQBODY_ERROR" | "REQBODY_PROCESSOR_ERROR" | "MULTIPART_STRICT_ERROR" | "MULTIPART_UNMATCHED_BOUNDARY"
        | "MULTIPART_BOUNDARY_QUOTED" | "MULTIPART_BOUNDARY_WHITESPACE" | "MULTIPART_DATA_BEFORE"
        | "MULTIPART_DATA_AFTER" | "MULTIPART_HEADER_FOLDING" | "MULTIPART_LF_LINE" | "MULTIPART_CRLF_LF_LINES"
        | "MULTIPART_SEMICOLON_MISSING" | "MULTIPART_MISSING_SEMICOLON" | "MULTIPART_INVALID_QUOTING"
        | "MULTIPART_INVALID_PART" | "MULTIPART_INVALID_HEADER_FOLDING" | "MULTIPART_FILE_LIMIT_EXCEEDED"
        | "URLENCODED_ERROR" | "INBOUND_DATA_ERROR" | "DURATION" | "MSC_PCRE_LIMITS_EXCEEDED";
    Files = "FILES";
    FilesNames = "FILES_NAMES";
    FilesSize = "FILES_COMBINED_SIZE";
    PartHeaders = "MULTIPART_PART_HEADERS";
    Xml = "XML";
    RemoteAddr = "REMOTE_ADDR" | "REMOTE_HOST";
    ServerName = "SERVER_NAME";
    UniqueId = "UNIQUE_ID";
    Tx = "TX";
    Ip = "IP";
    Global = "GLOBAL";
    Session = "SESSION";
    User = "USER";
    Resource = "RESOURCE";
    MatchedVar = "MATCHED_VAR";
    MatchedVarName = "MATCHED_VAR_NAME";
    MatchedVars = "MATCHED_VARS";
    MatchedVarsNames = "MATCHED_VARS_NAMES";
    Rule = "RULE";
    /// Known, and always empty: what this engine has not, and what is known of answers only.
    Nothing = "ENV" | "GEO" | "AUTH_TYPE" | "REMOTE_PORT" | "REMOTE_USER" | "SERVER_ADDR" | "SERVER_PORT" | "SESSIONID"
        | "USERID" | "WEBAPPID" | "FILES_SIZES" | "FILES_TMPNAMES" | "FILES_TMP_CONTENT" | "FULL_REQUEST"
        | "FULL_REQUEST_LENGTH" | "HIGHEST_SEVERITY" | "MODSEC_BUILD" | "MULTIPART_FILENAME" | "MULTIPART_NAME"
        | "REQBODY_ERROR_MSG" | "REQBODY_PROCESSOR_ERROR_MSG" | "RESPONSE_BODY" | "RESPONSE_HEADERS"
        | "RESPONSE_HEADERS_NAMES" | "RESPONSE_STATUS" | "RESPONSE_PROTOCOL" | "RESPONSE_CONTENT_TYPE"
        | "RESPONSE_CONTENT_LENGTH" | "RESPONSE_ARGS" | "STATUS_LINE" | "STREAM_INPUT_BODY" | "STREAM_OUTPUT_BODY"
        | "OUTBOUND_DATA_ERROR" | "TIME" | "TIME_DAY" | "TIME_EPOCH" | "TIME_HOUR" | "TIME_MIN" | "TIME_MON"
        | "TIME_SEC" | "TIME_WDAY" | "TIME_YEAR" | "PERF_ALL" | "PERF_RULES" | "SDBM_DELETE_ERROR"
        | "USERAGENT_IP" | "SCRIPT_FILENAME" | "SCRIPT_BASENAME" | "SCRIPT_USERNAME" | "SCRIPT_UID" | "SCRIPT_GID"
        | "SCRIPT_GROUPNAME" | "SCRIPT_MODE" | "MODSEC" | "PATH_TRANSLATED";
}

impl Collection {
    /// What rules write: the prefix of its names in a transaction.
    pub(crate) fn written(self) -> Option<&'static str> {
        Some(match self {
            Self::Tx => "tx.",
            Self::Ip => "ip.",
            Self::Global => "global.",
            Self::Session => "session.",
            Self::User => "user.",
            Self::Resource => "resource.",
            _ => return None,
        })
    }
}

/// Which of a collection.
#[derive(Clone, Debug)]
pub(crate) enum Select {
    All,
    /// In lower case.
    Name(Box<str>),
    Names(Box<Pattern>),
}

#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) collection: Collection,
    pub(crate) select: Select,
    /// How many there are, instead of what they are.
    pub(crate) counts: bool,
}

impl Select {
    pub(crate) fn fits(&self, name: &[u8]) -> bool {
        match self {
            Self::All => true,
            Self::Name(wanted) => name.eq_ignore_ascii_case(wanted.as_bytes()),
            Self::Names(pattern) => matches!(pattern.find(name), Ok(Some(_))),
        }
    }
}

impl Target {
    /// Whether a value of that name in a collection is one of these. `ARGS` has what `ARGS_GET` and `ARGS_POST` have.
    pub(crate) fn has(&self, collection: Collection, name: &[u8]) -> bool {
        use Collection::{Args, ArgsGet, ArgsGetNames, ArgsNames, ArgsPost, ArgsPostNames};
        let same = self.collection == collection
            || matches!(
                (self.collection, collection),
                (Args, ArgsGet | ArgsPost) | (ArgsNames, ArgsGetNames | ArgsPostNames)
            );
        same && self.select.fits(name)
    }
}

/// A list as `ARGS|!ARGS:a|&REQUEST_HEADERS:/x/`: those that are looked at, and those that are not.
pub(crate) fn targets(text: &str) -> Result<(Vec<Target>, Vec<Target>), String> {
    let (mut wanted, mut unwanted) = (Vec::new(), Vec::new());
    for part in parts(text) {
        let part = part.trim();
        match part.strip_prefix('!') {
            Some(part) => unwanted.push(target(part)?),
            None => wanted.push(target(part)?),
        }
    }
    Ok((wanted, unwanted))
}

/// Its paths have slashes that are no pattern's.
fn is_xml(part: Option<&str>) -> bool {
    part.is_some_and(|part| {
        part.trim_start().trim_start_matches(['&', '!']).to_ascii_uppercase().starts_with("XML")
    })
}

/// Divides at `|` and `,` outside of patterns and quotes.
fn parts(text: &str) -> Vec<&str> {
    let (mut parts, mut begun, mut open, mut escaped) = (Vec::new(), 0, None, false);
    let mut before = ' ';
    for (at, c) in text.char_indices() {
        match (open, c) {
            _ if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(end), c) if c == end => open = None,
            (Some(_), _) => {}
            (None, '/' | '\'') if (before == ':' || before == '\'') && !is_xml(text.get(begun..at)) => {
                open = Some(c)
            }
            (None, '|' | ',') => {
                parts.extend(text.get(begun..at));
                begun = at + 1;
            }
            _ => {}
        }
        before = c;
    }
    parts.extend(text.get(begun..));
    parts.retain(|part| !part.trim().is_empty());
    parts
}

pub(crate) fn target(text: &str) -> Result<Target, String> {
    let text = text.trim();
    let (counts, text) = match text.strip_prefix('&') {
        Some(text) => (true, text),
        None => (false, text),
    };
    let (name, part) = match text.split_once([':', '.']) {
        Some((name, part)) => (name, Some(part)),
        None => (text, None),
    };
    let collection =
        Collection::named(name).ok_or_else(|| format!("`{name}` is no variable that is known here"))?;
    let part =
        part.map(|part| part.strip_prefix('\'').and_then(|part| part.strip_suffix('\'')).unwrap_or(part));
    let select = match part {
        None | Some("") => Select::All,
        // XPath: all text, and all attributes.
        Some("/*" | "//@*" | "//*") if collection == Collection::Xml => Select::All,
        Some(path) if collection == Collection::Xml => {
            return Err(format!("`XML:{path}`: only `XML:/*` and `XML://@*` are known here"));
        }
        Some(part) => match part.strip_prefix('/').and_then(|part| part.strip_suffix('/')) {
            // Names are told apart without case.
            Some(pattern) => {
                Select::Names(Box::new(Pattern::new(&format!("(?i){}", pattern.replace("\\/", "/")))?))
            }
            None => Select::Name(part.to_ascii_lowercase().into()),
        },
    };
    Ok(Target { collection, select, counts })
}

/// Text with `%{...}` in it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Text(pub(crate) Vec<Piece>);

#[derive(Clone, Debug)]
pub(crate) enum Piece {
    Plain(Box<str>),
    Of(Target),
}

impl Text {
    pub(crate) fn new(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((plain, after)) = rest.split_once("%{") {
            let Some((name, after)) = after.split_once('}') else { break };
            if !plain.is_empty() {
                pieces.push(Piece::Plain(plain.into()));
            }
            pieces.push(Piece::Of(target(name)?));
            rest = after;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Plain(rest.into()));
        }
        Ok(Self(pieces))
    }

    /// Without anything to fill in.
    pub(crate) fn plain(&self) -> Option<&str> {
        match self.0.as_slice() {
            [] => Some(""),
            [Piece::Plain(text)] => Some(text),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_targets_are_taken_apart() {
        let (wanted, unwanted) = targets(
            "REQUEST_COOKIES|!REQUEST_COOKIES:/__utm|x/|&ARGS:'a'|XML:/*|tx:ABC,REQUEST_HEADERS:User-Agent",
        )
        .unwrap();
        assert_eq!(wanted.len(), 5);
        assert!(
            unwanted[0].has(Collection::Cookies, b"__UTMz") && !unwanted[0].has(Collection::Cookies, b"a")
        );
        assert!(wanted[1].counts && wanted[1].has(Collection::ArgsPost, b"A"));
        assert!(wanted[4].has(Collection::Headers, b"user-agent"));
        assert!(targets("ARGZ").unwrap_err().contains("`ARGZ`"));
        assert!(targets("XML:/a/b").unwrap_err().contains("XML:/a/b"));
        assert!(targets("ARGS:/(/").is_err());
        assert_eq!(Text::new("a%{tx.1}b%{c").unwrap().0.len(), 3);
        assert!(Text::new("%{nope.1}").is_err());
    }
}
