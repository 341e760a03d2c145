//! What rules do, by rules written here.

use std::sync::Arc;

use super::*;
use crate::{Arg, Processor};

fn engine(text: &str) -> Engine {
    let rules = Rules::compile(&[text.as_bytes()]).unwrap_or_else(|(_, fault)| panic!("{fault}"));
    Engine::new(&Arc::new(rules), Limits::default())
}

fn arg(source: Source, name: &'static str, value: &'static str) -> Arg<'static> {
    Arg { source, name: name.as_bytes().into(), value: value.as_bytes().into() }
}

fn request(args: Vec<Arg<'static>>) -> Request<'static> {
    Request {
        client: "192.0.2.1".into(),
        method: "GET",
        path: "/a/b%20c.php",
        query: Some("x=1"),
        protocol: "HTTP/1.1",
        headers: vec![("host", b"example.com:80"), ("user-agent", b"test")],
        args,
        ..Request::default()
    }
}

fn denied(text: &str, args: Vec<Arg<'static>>) -> Option<u32> {
    engine(text).judge(&request(args), 1, None).denied
}

#[test]
fn variables_operators_and_transformations_come_together() {
    let q = || vec![arg(Source::Query, "q", "A%62C"), arg(Source::Body, "p", "x")];
    for (rule, is) in [
        ("ARGS \"@streq abc\" \"id:1,phase:2,deny,t:urlDecode,t:lowercase\"", true),
        ("ARGS_POST \"@streq abc\" \"id:1,deny,t:urlDecode,t:lowercase\"", false),
        ("ARGS:q \"@rx ^A\" \"id:1,deny\"", true),
        ("ARGS|!ARGS:q \"@rx ^A\" \"id:1,deny\"", false),
        ("&ARGS \"@eq 2\" \"id:1,deny\"", true),
        ("&ARGS:/^[qz]$/ \"!@eq 1\" \"id:1,deny\"", false),
        ("ARGS_NAMES \"@within q|z\" \"id:1,deny\"", true),
        ("REQUEST_HEADERS:User-Agent \"@pm foo TEST\" \"id:1,deny\"", true),
        ("REQUEST_FILENAME \"@endsWith /b c.php\" \"id:1,deny\"", true),
        ("REQUEST_BASENAME \"@streq b c.php\" \"id:1,deny\"", true),
        ("REQUEST_LINE \"@streq GET /a/b%20c.php?x=1 HTTP/1.1\" \"id:1,deny\"", true),
        ("REMOTE_ADDR \"@ipMatch 192.0.2.0/24\" \"id:1,deny\"", true),
        ("SERVER_NAME \"@streq example.com\" \"id:1,deny\"", true),
        ("ARGS \"@validateUrlEncoding\" \"id:1,deny\"", false),
        ("ARGS \"@validateByteRange 65-90\" \"id:1,deny\"", true),
        ("TX:paranoia_level \"@ge 1\" \"id:1,deny\"", true),
        ("ARGS_COMBINED_SIZE \"@eq 8\" \"id:1,deny\"", true),
        ("ARGS \"@rx (?<!a)%62\" \"id:1,deny\"", true),
    ] {
        assert_eq!(denied(&format!("SecRule {rule}"), q()).is_some(), is, "{rule}");
    }
}

#[test]
fn chains_scores_and_markers_decide_together() {
    let text = r#"
SecDefaultAction "phase:2,log,pass"
SecAction "id:1,phase:1,nolog,pass,setvar:tx.limit=5"
SecRule ARGS "@contains bad" "id:2,phase:2,block,capture,msg:'x',tag:'attack-sqli',setvar:'tx.score=+3',chain"
  SecRule MATCHED_VAR "@rx (b)(ad)" "capture,setvar:tx.score=+2,setvar:'tx.seen_%{tx.2}=%{matched_var_name}'"
SecRule TX:limit "@eq 6" "id:3,nolog,pass,skipAfter:END"
SecRule TX:seen_ad "@streq ARGS:q" "id:4,nolog,pass,setvar:tx.score=+1"
SecRule TX:score "@ge %{tx.limit}" "id:5,deny"
SecMarker END
"#;
    let mut engine = engine(text);
    let verdict = engine.judge(&request(vec![arg(Source::Query, "q", "a bad b")]), 1, None);
    assert_eq!(verdict.denied, Some(5));
    let ids: Vec<_> = verdict.matches.iter().map(|found| found.rule).collect();
    assert_eq!(ids, [2, 5]);
    assert_eq!((&*verdict.matches[0].name, &*verdict.matches[0].matched), (&b"q"[..], &b"bad"[..]));
    // Nothing is kept for the next one.
    assert_eq!(engine.judge(&request(vec![arg(Source::Query, "q", "fine")]), 1, None), Verdict::default());
    let skipped = text.replace("@eq 6", "@eq 5");
    assert_eq!(denied(&skipped, vec![arg(Source::Query, "q", "bad")]), None);
}

#[test]
fn rules_can_be_taken_away() {
    let rule = "SecRule ARGS \"@streq a\" \"id:10,deny,tag:'attack-xss',msg:'told'\"\n";
    let a = || vec![arg(Source::Query, "q", "a")];
    for (text, is) in [
        (rule.to_owned(), true),
        (format!("{rule}SecRuleRemoveById 9-11"), false),
        (format!("{rule}SecRuleRemoveByTag attack-x"), false),
        (format!("{rule}SecRuleRemoveByMsg told"), false),
        (format!("{rule}SecRuleUpdateTargetById 10 !ARGS:q"), false),
        (format!("{rule}SecRuleUpdateTargetByTag attack-xss !ARGS:z"), true),
        (format!("{rule}SecRuleUpdateActionById 10 pass"), false),
        (format!("SecAction \"id:1,phase:1,ctl:ruleRemoveById=10\"\n{rule}"), false),
        (format!("SecAction \"id:1,phase:1,ctl:ruleRemoveTargetByTag=attack-.*;ARGS:q\"\n{rule}"), false),
        (format!("SecAction \"id:1,phase:1,ctl:ruleEngine=DetectionOnly\"\n{rule}"), false),
        (format!("SecAction \"id:1,phase:1,ctl:ruleEngine=Off\"\n{rule}"), false),
        (format!("SecAction \"id:1,phase:1,allow:phase\"\n{rule}"), true),
        (format!("SecAction \"id:1,phase:2,skip:1\"\n{rule}"), false),
        (format!("SecRule RESPONSE_BODY \"@rx (?!x)\" \"id:1,phase:4,deny\"\n{rule}"), true),
    ] {
        assert_eq!(denied(&text, a()).is_some(), is, "{text}");
    }
}

#[test]
fn exceptions_hold_where_they_say() {
    struct Except;
    impl Skips for Except {
        fn skips(&self, rule: u32, tags: &[Box<str>], source: Source, name: &[u8]) -> bool {
            rule == 1 && source == Source::Query && name == b"q" && &*tags[0] == "attack-xss"
        }
    }
    let mut engine = engine("SecRule ARGS \"@streq a\" \"id:1,deny,tag:attack-xss\"");
    let judge = |engine: &mut Engine, name| {
        engine.judge(&request(vec![arg(Source::Query, name, "a")]), 1, Some(&Except)).denied
    };
    assert_eq!((judge(&mut engine, "q"), judge(&mut engine, "z")), (None, Some(1)));
}

#[test]
fn faults_say_where_and_what() {
    for (text, told) in [
        ("SecRule ARGS", "line 1: `SecRule` has variables"),
        ("\nSecRule ARGS \"@rx (\" \"id:1\"", "line 2: "),
        ("SecRule ARGS x \"deny\"", "needs an `id`"),
        ("SecAction \"id:1\"\nSecAction \"id:1\"", "line 2: there are two rules with id 1"),
        ("SecAction \"id:1,chain\"", "line 1: the rule that is chained to it is missing"),
        ("SecAction \"id:1,skipAfter:NONE\"", "no marker `NONE`"),
        ("SecFoo On", "no directive `SecFoo`"),
        ("<IfModule x>", "no directive `<IfModule`"),
        ("SecRuleEngine Perhaps", "no mode `Perhaps`"),
        ("SecRule ARGS x \"id:1,chain\"\nSecRule ARGS y \"id:2\"", "has no `id`"),
        ("Include other.conf", "where the file is"),
        ("SecRule ARGS \"@pmFromFile a.data\" id:1", "`a.data` did not come along"),
        ("SecRuleRemoveById x", "`x` is no id"),
    ] {
        let fault = Rules::compile(&[text.as_bytes()]).unwrap_err().1.to_string();
        assert!(fault.contains(told), "{text}: {fault}");
    }
    assert!(Rules::compile(&[b"\xff"]).is_err());
}

#[test]
fn what_is_too_much_is_told() {
    let many = (0..3_000).map(|_| arg(Source::Query, "a", "b")).collect();
    let verdict = engine("SecAction \"id:1\"").judge(&request(many), 1, None);
    assert!(verdict.exhausted);
    let rules = Rules::compile(&[b"SecRule REQUEST_BODY \"@rx ^(?:(?=a)a+)+(?=b)\" \"id:1,deny\""]).unwrap();
    let body = format!("{}!!", "a".repeat(200));
    let asked = Request { body: body.as_bytes(), processor: Processor::Urlencoded, ..request(Vec::new()) };
    let verdict = Engine::new(&Arc::new(rules), Limits::default()).judge(&asked, 1, None);
    assert!(verdict.exhausted && verdict.denied.is_none());
    // Time runs out.
    let text: String = (1..400)
        .map(|id| format!("SecRule REQUEST_BODY \"@rx [ab]{{5}}c.{{0,9}}d\" \"id:{id},deny\"\n"))
        .collect();
    let rules = Arc::new(Rules::compile(&[text.as_bytes()]).unwrap());
    let body = "a".repeat(128 << 10);
    let asked = Request { body: body.as_bytes(), ..request(Vec::new()) };
    let limits = Limits { time: Duration::from_millis(1), ..Limits::default() };
    assert!(Engine::new(&rules, limits).judge(&asked, 1, None).exhausted);
}
