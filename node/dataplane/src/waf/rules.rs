//! The rules: what each is called, from which level on it holds, and what it looks for.
//!
//! A rule has literals, of which one must occur (in any case) before its pattern is tried: nearly all that is
//! innocent has none of them and costs one pass over its bytes for all rules together. Literals have no spaces, since
//! a comment may stand for one.
//!
//! Written from the classes of attack. Level 1 is for what hardly anybody sends who means no harm; each level above
//! takes in what is more often innocent.

use std::fmt;

/// At most 64: [`Rules`] has a bit for each.
macro_rules! rules {
    ($($(#[doc = $doc:literal])+ $name:ident => ($id:literal, $class:ident, $level:literal);)+) => {
        /// What a finding is about.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub(crate) enum Rule { $($(#[doc = $doc])+ $name,)+ }

        impl Rule {
            pub(crate) const ALL: &'static [Rule] = &[$(Rule::$name),+];
            pub(crate) const COUNT: usize = Self::ALL.len();

            /// In config, log and metrics. Stable: exceptions name it.
            pub(crate) fn id(self) -> &'static str {
                match self { $(Rule::$name => $id,)+ }
            }

            fn class(self) -> Class {
                match self { $(Rule::$name => Class::$class,)+ }
            }

            pub(crate) fn level(self) -> u8 {
                match self { $(Rule::$name => $level,)+ }
            }
        }
    };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Sqli,
    Xss,
    Body,
    Files,
}

rules! {
    /// libinjection: the tokens that the value begins with are those of an injection.
    SqliTokens => ("sqli-tokens", Sqli, 1);
    /// A further SELECT, joined by UNION and its kin.
    SqliUnion => ("sqli-union", Sqli, 1);
    /// A SELECT, or one in parentheses.
    SqliSelect => ("sqli-select", Sqli, 1);
    /// A condition that is always true, or never.
    SqliTautology => ("sqli-tautology", Sqli, 1);
    /// A quote, and then a comment that hides the rest.
    SqliBreakOut => ("sqli-break-out", Sqli, 1);
    /// A statement after another, or a whole one.
    SqliStatement => ("sqli-statement", Sqli, 1);
    /// A function that waits, fails loudly, reads files or asks other hosts.
    SqliFunction => ("sqli-function", Sqli, 1);
    /// A table or variable in which a database describes itself.
    SqliSchema => ("sqli-schema", Sqli, 1);
    /// ORDER BY, GROUP BY, HAVING with numbers; INTO OUTFILE; CASE WHEN.
    SqliClause => ("sqli-clause", Sqli, 1);
    /// Any comparison of literals after a logical word, any comment after a quote.
    SqliLoose => ("sqli-loose", Sqli, 2);
    /// Two words of SQL that belong together.
    SqliWords => ("sqli-words", Sqli, 3);
    /// A quote, a semicolon or a comment.
    SqliSigns => ("sqli-signs", Sqli, 4);
    /// libinjection: a tag, attribute or scheme that runs scripts.
    XssMarkup => ("xss-markup", Xss, 1);
    /// A tag that runs scripts or loads what may.
    XssTag => ("xss-tag", Xss, 1);
    /// An attribute that handles events.
    XssHandler => ("xss-handler", Xss, 1);
    /// A URL that is a script or a document.
    XssScheme => ("xss-scheme", Xss, 1);
    /// Out of a string of a script, into the script.
    XssBreakOut => ("xss-break-out", Xss, 1);
    /// A call that only an attack passes in a value.
    XssCall => ("xss-call", Xss, 1);
    /// An expression in a template that reaches for the language.
    XssTemplate => ("xss-template", Xss, 1);
    /// Any tag of HTML.
    XssAnyTag => ("xss-any-tag", Xss, 2);
    /// An angle bracket before a letter.
    XssSigns => ("xss-signs", Xss, 4);
    /// The body is nested deeper than anybody nests.
    BodyDepth => ("body-depth", Body, 1);
    /// The body's character set could hide anything.
    BodyCharset => ("body-charset", Body, 1);
    /// The body is compressed, so nobody here can read it.
    BodyEncoding => ("body-encoding", Body, 1);
    /// The body is longer than what is looked at, and `over` says that this is refused.
    BodyOver => ("body-over", Body, 1);
    /// The node holds as many bytes of bodies as it may: of this one only the beginning was looked at.
    BodyMemory => ("body-memory", Body, 1);
    /// The body is written so that readers differ in what is a field of it, or in how it is read at all.
    BodyAmbiguous => ("body-ambiguous", Body, 1);
    /// A document of XML that declares what its own words mean.
    BodyDoctype => ("body-doctype", Body, 1);
    /// The request takes more work than rules of files may take.
    FilesWork => ("files-work", Files, 1);
}

/// A set of rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Rules(u64);

impl Rules {
    pub(crate) const NONE: Rules = Rules(0);

    /// Those about how a request comes, whoever judges what is in it.
    pub(crate) const OF_FORM: Rules = Rules(
        1 << Rule::BodyDepth as u64
            | 1 << Rule::BodyCharset as u64
            | 1 << Rule::BodyEncoding as u64
            | 1 << Rule::BodyOver as u64
            | 1 << Rule::BodyMemory as u64
            | 1 << Rule::BodyAmbiguous as u64
            | 1 << Rule::BodyDoctype as u64
            | 1 << Rule::FilesWork as u64,
    );

    /// Those that hold at this level.
    pub(crate) fn up_to(level: u8) -> Self {
        Rule::ALL.iter().filter(|rule| rule.level() <= level).fold(Self::NONE, |all, rule| all.with(*rule))
    }

    /// What a name in an exception stands for: a rule, or `sqli`, `xss`, `body` for all of a class. `None`: nothing.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let class = match name {
            "sqli" => Some(Class::Sqli),
            "xss" => Some(Class::Xss),
            "body" => Some(Class::Body),
            _ => None,
        };
        let fits = |rule: &&Rule| rule.id() == name || Some(rule.class()) == class;
        let rules = Rule::ALL.iter().filter(fits).fold(Self::NONE, |all, rule| all.with(*rule));
        (rules != Self::NONE).then_some(rules)
    }

    #[must_use]
    pub(crate) fn with(self, rule: Rule) -> Self {
        Self(self.0 | 1 << rule as u64)
    }

    #[must_use]
    pub(crate) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(crate) fn has(self, rule: Rule) -> bool {
        self.0 & 1 << rule as u64 != 0
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

/// What a pattern is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Text {
    /// Lower case, white space as single spaces; and once more without the comments of SQL.
    Spaced,
    /// Lower case without white space and control characters, which browsers skip in a scheme.
    Tight,
}

/// What a value must have beside a literal for its pattern to be worth a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    Open,
    /// Parentheses, quotes or operators.
    Signs,
    Quote,
    /// A word that joins conditions, and a digit or a quote. Such words are in too many others to be literals.
    Condition,
    /// A word that begins with `on`, and an equals sign after it.
    Handler,
}

/// How a rule is found.
#[derive(Debug)]
pub(super) struct Pattern {
    pub(super) rule: Rule,
    /// One of them must occur; lower case. None: the gate is enough.
    pub(super) literals: &'static [&'static str],
    pub(super) gate: Gate,
    pub(super) text: Text,
    pub(super) regex: &'static str,
}

const fn spaced(rule: Rule, literals: &'static [&'static str], regex: &'static str) -> Pattern {
    Pattern { rule, literals, gate: Gate::Open, text: Text::Spaced, regex }
}

const fn tight(rule: Rule, literals: &'static [&'static str], regex: &'static str) -> Pattern {
    Pattern { rule, literals, gate: Gate::Open, text: Text::Tight, regex }
}

impl Pattern {
    const fn gate(mut self, gate: Gate) -> Self {
        self.gate = gate;
        self
    }
}

/// Events of HTML, SVG and browsers of old, by how their names begin. `once=` and `online=` are none.
macro_rules! events {
    () => {
        "on(?:abort|activate|after|animation|auxclick|before|begin|blur|bounce|cancel|canplay|cellchange|change|click|close|cont[er]|copy|cuechange|cut|data|dbl|deactivate|drag|drop|durationchange|emptied|end|error|filter|finish|focus|formdata|fullscreen|gotpointer|hashchange|help|input|invalid|key|layout|load|losecapture|lostpointer|message|mouse|move|offline|page|paste|pause|play|pointer|popstate|progress|propertychange|ratechange|ready|repeat|reset|resize|row|scroll|search|seek|select|show|slotchange|stalled|start|stop|storage|submit|suspend|time|toggle|touch|transition|unhandled|unload|volumechange|waiting|webkit|wheel)[a-z]*"
    };
}

/// A value that stands for itself.
macro_rules! literal {
    () => {
        r#"(?:'[^']{0,40}'?|"[^"]{0,40}"?|0x[0-9a-f]+|\d+(?:\.\d+)?(?:e\d+)?|true|false|@@\w+)"#
    };
}

macro_rules! comparison {
    () => {
        r"[ )]*(?:<=>|<>|!=|=|\blike\b|\brlike\b|\bregexp\b|\bbetween\b|\bsounds like\b|\bin ?\()[ (+~-]*"
    };
}

pub(super) const PATTERNS: &[Pattern] = &[
    // === SQL injection ===
    spaced(
        Rule::SqliUnion,
        &["union", "intersect", "except"],
        r"(?:union|\bintersect|\bexcept)(?: |\()(?:(?:all|distinct|distinctrow)(?: |\())?[ (]*(?:select\b|values ?\(|table [a-z_])",
    ),
    spaced(
        Rule::SqliSelect,
        &["select"],
        concat!(
            r"\(+ ?select\b[^)]{0,200}?(?:\bfrom\b|[\d@'(*])|",
            r"\bselect ?\(? ?(?:char|chr|ascii|concat|concat_ws|group_concat|load_file|user|current_user|database|version|hex|unhex|substring|substr|mid|length|count|sleep|name_const|extractvalue|updatexml|cast|convert|json_\w+) ?\(|",
            r#"['"`] ?; ?select \w|"#,
            r"\bselect ?(?:\* ?(?:from\b|,)|@@|[-+~]?\d+ ?(?:$|[,;)#]|--|from\b)|top \d|distinct [a-z_.]+ from\b|null\b ?(?:$|[,;)#]|--|from\b)|(?:[\w.`\[\]]+ ?, ?)+[\w.`*\[\]]+ from [a-z_]|count ?\(|'[^']*' ?(?:$|,|from\b|--))|\bselect \w+\(.{0,80}\) ?(?:from\b|,|$|--|#)|",
            r#"\bselect (?:all )?[\w.`*"]+ from [\w.`"\[\]]+ (?:where [\w.`"]{1,60} ?(?:=|<|>|like\b|in\b|is\b)|limit \d|order by|group by|union\b|inner join|--|#)|"#,
            r"^[\w.]+ from [\w.]+ ?(?:--|#|where [\w.`]+ ?=)",
        ),
    ),
    spaced(
        Rule::SqliTautology,
        &[],
        concat!(
            // A logical word, and literals that are compared.
            r"(?:\b(?:or|and|xor|having|where)\b|\|\||&&)[ (!~+-]*(?:not\b|binary\b|!)?[ (!~+-]*",
            literal!(),
            comparison!(),
            literal!(),
            // The same, less or more, where a literal may have ended before it.
            r#"|(?:['"`)]|^[-+]?\d+) ?\)*(?:\b(?:or|and|xor)\b|\|\||&&)[ (!~+-]*"#,
            literal!(),
            "[ )]*(?:<|>)=?[ (+~-]*",
            literal!(),
            // Out of a string or after a number: one that is true by itself, or a subquery.
            r#"|(?:['"`)]|^[-+]?\d+) ?\)*(?: ?(?:\bor\b|\band\b|\bxor\b|\|\||&&))[ (!~+-]*(?:not )*(?:true\b|false\b|exists ?\(|\(? ?select\b|1 ?(?:--|#|/\*|;|$)|\d+ ?(?:--|#|/\*|;)|\w+\([^)]{0,40}\) ?(?:[=<>]|--|#|$|regexp|like))"#,
            r#"|['"`] ?\)* ?(?:or|and|\|\||&&) ?\(? ?[\w.]+\b ?(?:is (?:not )?null|like ['"%]|=|<|>|in ?\()"#,
            r#"|['"] ?(?:\|\||&&|\||&|\^|<>|!=|<|>|=|\*|\+|-) ?(?:\(?\d+\)? ?(?:--|#|/\*|;?$)|'['\w]{0,10}(?:or)?$|'' ?(?:or|and|#|--))"#,
            r"|\b\d+ (?:sounds like|collate \w+ or|div \d+ or|mod \d+ (?:or|union)|is not null or) ",
            r"|^(?:or|and) '[^']{0,20}' ?= ?'",
        ),
    )
    .gate(Gate::Condition),
    spaced(
        Rule::SqliTautology,
        &["'", "\"", "`"],
        r#"['"] ?(?:\|\||&&|\||&|\^|<>|!=|<|>|=) ?(?:\(?\d+\)? ?(?:--|#|/\*|;?$)|'' ?(?:or|and|#|--)|''or|'' ?#)|['"] ?\)* ?(?:or|and|xor)\(?['"(\d]|['"`)] ?(?:regexp|rlike)\b|(?:\d+|["'`]) as ["'`]\w*["'`]? from\b"#,
    )
    .gate(Gate::Quote),
    spaced(
        Rule::SqliBreakOut,
        &["--", "#", "/*", ";"],
        r#"['"`] ?\)* ?;? ?(?:--[ +x-]{0,4}|#|/\*)$|^\S{1,40}['"`]\)* ?(?:--|#|/\*)|^[\w.@-]{1,40}['"`]\)* ?; ?$|['"`] ?\)* ?/\*"#,
    )
    .gate(Gate::Quote),
    spaced(Rule::SqliBreakOut, &[";--"], r"^\d+\)* ?;--"),
    spaced(
        Rule::SqliStatement,
        &[
            "drop", "alter", "create", "truncate", "rename", "delete", "insert", "update", "exec", "declare",
            "shutdown", "grant", "global", "session", "copy", "backup", "attach", "prepare", "handler", "merge", "load",
            "call", "begin", "waitfor", "xp_", "sp_", "select",
        ],
        concat!(
            r"; ?(?:drop|alter|create|truncate|rename) (?:table|database|schema|view|index|user|function|procedure|trigger|login|temporary)\b",
            r"|; ?(?:delete from [\w.`]+ ?(?:$|;|--|#|where\b)|insert into [\w.`]+ ?(?:\(|values|select)|update [\w.`]+ set [\w.`]+ ?=|exec(?:ute)? (?:xp_|sp_|master|immediate|[@(])|exec ?\(|declare @|shutdown ?(?:$|;|--|with)|grant (?:all|select|insert|update|execute|dba)\b|revoke all|set (?:global|session|@)|copy (?:\(|[\w.]+ (?:to|from) )|backup (?:database|log)|attach (?:database )?'|prepare \w+ from|handler \w+ open|merge into|load data|call \w+\(|begin (?:dbms_|declare)|truncate \w+ ?(?:$|;|--)|select (?:[\d*'@(]|\w+\(|\w+ from\b))",
            r"|^[ '(]*(?:drop (?:table|database|schema) (?:if exists )?[\w.`]+ ?(?:;|--|#|$|cascade)|delete from [\w.`]+ (?:where [\w.`]+ ?(?:=|<|>|like|in)|;|--)|insert into [\w.`]+ ?(?:\([^)]*\) ?)?values ?\(|update [\w.`]+ set [\w.`]+ ?= ?['\d\w]|truncate table [\w.`]+ ?(?:;|--|$)|exec(?:ute)? (?:xp_|sp_|master)|declare @\w+ \w+|/?create (?:table|database) [\w.`]+ ?(?:\(|;|$))",
            r"|\bwaitfor (?:delay|time) ?\(? ?['@]|\bxp_(?:cmdshell|reg\w+|dirtree|fileexist|servicecontrol)\b|\bsp_(?:executesql|makewebtask|oacreate|oamethod|configure|addextendedproc|password|addsrvrolemember)\b",
        ),
    ),
    spaced(
        Rule::SqliFunction,
        &[
            "sleep",
            "benchmark",
            "receive_message",
            "extractvalue",
            "updatexml",
            "load_file",
            "randomblob",
            "utl_",
            "ctxsys",
            "dblink",
            "lo_import",
            "lo_export",
            "has_dbaccess",
            "is_srvrolemember",
            "group_concat",
            "concat_ws",
            "unhex",
            "gtid_subset",
            "st_latfrom",
            "geometrycollection",
            "dbms_",
            "user",
            "database",
            "version",
            "schema",
            "host_name",
            "db_name",
            "name_const",
            "xmltype",
            "openrowset",
            "hextoraw",
            "if(",
        ],
        concat!(
            r"\b(?:sleep ?\( ?['(]?\d+(?:\.\d+)?'?\)* ?\)|pg_sleep(?:_for)? ?\(|benchmark ?\( ?\d+ ?,|dbms_pipe ?\. ?receive_message ?\(|dbms_(?:lock|session) ?\. ?sleep ?\(|extractvalue ?\( ?\S|updatexml ?\( ?\S|load_file ?\(|randomblob ?\( ?\d|utl_(?:http|inaddr|smtp|file) ?\. ?\w+ ?\(|ctxsys ?\. ?\w+ ?\. ?\w+|dblink(?:_connect|_exec)? ?\( ?'|lo_(?:import|export) ?\( ?['\d]|has_dbaccess ?\(|is_(?:srvrole|rolemember)\w* ?\( ?'|group_concat ?\( ?\w|concat_ws ?\( ?0x|unhex ?\( ?['\d]|gtid_subset ?\( ?\S|st_latfrom\w+ ?\( ?\S|geometrycollection ?\( ?\(|name_const ?\( ?\S|xmltype ?\( ?['c]|openrowset ?\( ?'|hextoraw ?\( ?')",
            // One that tells who and where, by itself or computed with.
            r#"|^[ '"(),0-9=|+-]*(?:select )?(?:current_user|session_user|system_user|user|database|version|schema|host_name|db_name|user_name|suser_sname) ?\( ?\)?[ '")(,=|+#-]*$"#,
            r#"|['"=|(,] ?(?:and |or |\|\| ?)?(?:select )?(?:current_user|session_user|system_user|user|database|version|host_name|db_name) ?\( ?\) ?(?:[=<>|,)]|--|#)"#,
            r"|\b(?:or|and) (?:current_user|session_user|system_user|user) ?(?:\( ?\) ?)?= ?'",
            r"|\bi?if ?\( ?[^,]{1,40}[=<>][^,]{0,40},[^,]{1,40},",
        ),
    )
    .gate(Gate::Signs),
    spaced(
        Rule::SqliSchema,
        &[
            "information_schema",
            "pg_",
            "sqlite_",
            "sysobjects",
            "syscolumns",
            "sysdatabases",
            "sysusers",
            "sys",
            "all_tab",
            "user_tab",
            "mysql",
            "v$version",
            "msys",
            "@@",
            "dba_users",
        ],
        r"\binformation_schema\b|\bpg_(?:tables|shadow|catalog|user|database|class|stat_activity|read_file|ls_dir)\b|\bsqlite_(?:master|schema|temp_master)\b|\b(?:sysobjects|syscolumns|sysdatabases|sysusers|sysibm ?\. ?\w+)\b|\bsys ?\. ?(?:tables|databases|objects|columns|schemas|sql_logins)\b|\b(?:all|user)_tab(?:les|_columns)\b|\bdba_users\b|\bmysql ?\. ?(?:user|db|innodb_\w+)\b|\bv\$version\b|\bmsysobjects\b|@@(?:version|datadir|hostname|servername|basedir|global|session|innodb\w*|language|spid|secure_file_priv|tmpdir|port)\b",
    ),
    spaced(
        Rule::SqliClause,
        &[
            "order",
            "group",
            "having",
            "outfile",
            "dumpfile",
            "analyse",
            "case",
            "terminated",
            "into",
            "iif",
            "sort",
        ],
        concat!(
            r#"(?:['"`)]|^[-+]?\d+|^) ?\)* ?\b(?:order|group) by \d+(?: ?, ?\d+)* ?(?:asc|desc)? ?(?:--|#|;|/\*|limit\b)|(?:['"`)] ?\)*|^[-+]?\d+\)*) ?(?:order|group) by \d+(?: ?, ?\d+)*"#,
            r#"|(?:['"`)]|\d|^) ?\bhaving (?:\d+|'[^']*'|\w+ ?\([^)]{0,40}\)) ?[<>=]"#,
            r"|\binto (?:out|dump)file ?['0@]|\binto @\w+|\bprocedure analyse ?\(|\blines terminated by\b",
            r"|\bcase (?:\w+ )?when\b.{1,80}?\bthen\b.{1,80}?\b(?:else|end)\b",
            r"|\b(?:sort|order) by \(+ ?(?:select|case)\b",
        ),
    ),
    spaced(
        Rule::SqliLoose,
        &[],
        r#"\b(?:or|and)\b ?\(*[\w'"]+ ?(?:=|<|>|like)|['"].{0,10}(?:--|#|/\*)|['"] ?(?:\|\||or\b|and\b)"#,
    )
    .gate(Gate::Condition),
    spaced(
        Rule::SqliWords,
        &[
            "select", "insert", "update", "delete", "drop", "union", "create", "alter", "truncate", "exec",
            "order", "group",
        ],
        r"\b(?:select\b.*\bfrom|insert\b.*\binto|update\b.*\bset|delete\b.*\bfrom|drop (?:table|database)|union\b.*\bselect|create table|alter table|truncate table|exec(?:ute)? |(?:order|group) by)\b",
    ),
    spaced(Rule::SqliSigns, &["'", "\"", ";", "--", "/*", "#", "`"], r#"['"`;#]|--|/\*"#),
    // === XSS ===
    spaced(
        Rule::XssTag,
        &["<"],
        concat!(
            r"<[ /]*(?:\w+:)?script\b|<[ /]*(?:iframe|object|embed|applet|frameset|frame|isindex|bgsound|portal|base|meta|foreignobject|handler|vmlframe)[ />]",
            r#"|<(?:link|style|svg|math)[ />][^>]{0,200}?(?:on[a-z]+ ?=|href|url|import|expression|script)|<style[ >].{0,200}?(?:@import|expression ?\(|javascript:|-moz-binding|behaviou?r ?:)|style ?= ?["']?[^"'>]{0,200}(?:expression ?\(|javascript:|behaviou?r ?:|-moz-binding)"#,
            r"|<(?:[a-z]{1,20} )?<|<scr<script|<!entity|<\?xml-stylesheet",
        ),
    ),
    spaced(
        Rule::XssHandler,
        &[],
        concat!(
            r#"<[a-z!/?][^>]*?[ /"'`]"#,
            events!(),
            " ?=",
            r#"|(?:^|["'`]) ?[^<>"'`=]{0,40}?(?:[a-z-]+ ?= ?[^ "'`]{0,40} )?[ /"'`]"#,
            events!(),
            r#" ?= ?["'`]? ?(?:[\w.$]{1,60} ?[(`\[=]|[\[(]|eval|javascript)"#,
            r#"|["'`][ /]*(?:[a-z]+ )*"#,
            events!(),
            r#" ?= ?["'`]?[a-z$_(\[]"#,
        ),
    )
    .gate(Gate::Handler),
    tight(
        Rule::XssScheme,
        &["script", "data:"],
        concat!(
            r#"(?:java|vb|live|j)script:[^"'<>]{0,80}[(`=\[%/*]"#,
            r#"|(?:href|src|action|data|background|poster|lowsrc|dynsrc|url|content|formaction)[=("']+["']?(?:java|vb)script:"#,
            r#"|data:(?:text/html|application/(?:xhtml\+)?xml|text/xml)[;,]"#,
        ),
    ),
    spaced(
        Rule::XssBreakOut,
        &[
            "alert",
            "confirm",
            "prompt",
            "eval",
            "fetch",
            "settimeout",
            "setinterval",
            "function",
            "import",
            "top",
            "self",
            "window",
            "document",
            "location",
            "throw",
            "onerror",
            "[1]",
            "constructor",
        ],
        concat!(
            r#"['"`] ?[)\]}]* ?(?:;|\+|-|\*|/|\||\^|&|,|\?|:|%|<|>|=)+ ?[({\[]* ?"#,
            r#"(?:(?:alert|confirm|prompt|eval|fetch|settimeout|setinterval|import|print)\b ?\)?[(`.\[]|new function\b|function ?\(|(?:top|self|window|parent|frames|document|location)\b ?[.\[=]|throw\b|onerror ?=|\[?[\w,]*\] ?\. ?(?:map|find|filter|foreach|some|every|reduce) ?\()"#,
        ),
    )
    .gate(Gate::Quote),
    spaced(
        Rule::XssCall,
        &[
            "alert",
            "confirm",
            "prompt",
            "eval",
            "document",
            "fromcharcode",
            "constructor",
            "innerhtml",
            "location",
            "settimeout",
            "setinterval",
            "function",
            "throw",
            "atob",
            "btoa",
        ],
        concat!(
            r#"\b(?:alert|confirm|prompt|eval)[(`] ?(?:document\b|window\b|location\b|self\b|top\b|this\b|name\)|-?\d+ ?[)`]|['"]|string\b|atob\b|/)"#,
            r"|\bdocument ?\. ?(?:cookie|domain|write(?:ln)? ?\(|location|body ?\.|createelement)",
            r"|\bstring ?\. ?fromcharcode ?\(|\bconstructor ?\. ?(?:constructor|prototype)|\bconstructor ?\( ?['`]|\.(?:inner|outer)html ?[+]?=",
            r"|\b(?:window|self|top|parent|document) ?\. ?location ?(?:\. ?(?:href|hash|search|replace|assign))? ?[=(]|\blocation ?\. ?hash\b",
            r"|\b(?:alert|confirm|prompt|atob|btoa)\( ?\)|\bset(?:timeout|interval)\(\w+ ?, ?\d+ ?\)|\bnew function ?\(",
            r"|\bset(?:timeout|interval) ?\( ?(?:alert|eval|prompt|confirm|['`])|\bfunction ?\( ?['`]|\bonerror ?= ?\w+ ?; ?throw\b|\beval ?\( ?(?:atob|location|unescape)",
        ),
    )
    .gate(Gate::Signs),
    spaced(
        Rule::XssTemplate,
        &["${", "#{", "{{"],
        r"(?:\$\{|#\{|\{\{).{0,120}?(?:alert|constructor|\$?eval|prototype|document\.|window\.|process\.|__proto__|__class__)",
    )
    .gate(Gate::Signs),
    spaced(Rule::XssAnyTag, &["<"], r"<[/!?]?[a-z][^<]*>|<[a-z]+ [a-z-]+ ?="),
    spaced(Rule::XssSigns, &["<"], r"<[a-z/!?]"),
];
