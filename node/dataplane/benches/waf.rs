//! What it costs to inspect a request. Run by hand:
//!
//! ```sh
//! cargo bench -p trestle-dataplane --bench waf
//! ```
//!
//! Requests of 1 KiB as browsers and programs send them, and the worst that a client can do with a body of 128 KiB.
//! Time is that of the processor, the best of some rounds.

use std::hint::black_box;
use std::path::Path;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue};
use trestle_dataplane::bench::{Inspected, timed};

const ROUNDS: usize = 10;

const CRS: &str = "/usr/share/modsecurity-crs/owasp-crs.load";

struct Asked {
    what: &'static str,
    path: &'static str,
    query: Option<&'static str>,
    headers: HeaderMap,
    body: Vec<u8>,
}

fn main() {
    println!("the built-in rules");
    measure(&Inspected::new(1));
    let rules = Path::new(CRS);
    if rules.exists() {
        println!("\nthe OWASP Core Rule Set of Debian's modsecurity-crs, alone");
        let (inspected, time) = timed(|| Inspected::with_rules(1, rules));
        println!("compiled in {:.0} ms", time.as_secs_f64() * 1e3);
        measure(&inspected);
    }
}

fn measure(inspected: &Inspected) {
    println!("{:<44} {:>8}   {:>9}   passes", "request", "bytes", "time");
    for asked in requests() {
        let passes = || inspected.passes(asked.path, asked.query, &asked.headers, &asked.body);
        let count = if asked.body.len() > 10_000 { 3 } else { 500 };
        let round = |_| {
            let ((), time) = timed(|| {
                for _ in 0..count {
                    black_box(passes());
                }
            });
            time.as_secs_f64() / f64::from(count)
        };
        let best = (0..ROUNDS).map(round).fold(f64::INFINITY, f64::min);
        let header: usize =
            asked.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
        let bytes = asked.path.len() + asked.query.map_or(0, str::len) + header + asked.body.len();
        println!("{:<44} {bytes:>8}   {:>6.1} µs   {}", asked.what, best * 1e6, passes());
    }
}

fn requests() -> Vec<Asked> {
    let browser = [
        ("host", "shop.example.com"),
        (
            "user-agent",
            "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Safari/537.36",
        ),
        ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"),
        ("accept-encoding", "gzip, deflate, br, zstd"),
        ("accept-language", "en-GB,en;q=0.9,de;q=0.8"),
        ("referer", "https://shop.example.com/lamps?page=2&sort=price"),
        ("sec-ch-ua", "\"Chromium\";v=\"130\", \"Not?A_Brand\";v=\"99\", \"Google Chrome\";v=\"130\""),
        ("sec-fetch-dest", "document"),
        (
            "cookie",
            "_ga=GA1.2.1234567890.1700000000; session=eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U; theme=dark; cart=17%7C42; consent=a:1&b:0; lang=en",
        ),
    ];
    let of = |what, query, kind: &'static str, body: String| {
        let headers = browser
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let mut headers: HeaderMap = headers.collect();
        if !kind.is_empty() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        }
        Asked { what, path: "/lamps/desk-lamp-42", query, headers, body: body.into_bytes() }
    };
    let form = "application/x-www-form-urlencoded";
    let large = |piece: &str| piece.chars().cycle().take(128 << 10).collect::<String>();
    vec![
        of("page in a browser", Some("q=desk+lamp&page=3&sort=price&from=2026-11-01"), "", String::new()),
        of("the same, search with an apostrophe", Some("q=children%27s+lamp+and+table&page=3"), "", String::new()),
        of("API, JSON", None, "application/json", r#"{"id":42,"name":"Desk lamp","tags":["light","desk"],"price":{"amount":1999,"currency":"EUR"},"made":"2026-11-28T12:00:00Z","by":{"id":"a1b2c3d4-e5f6-7890","name":"Ann O'Brien"}}"#.into()),
        of("form with prose", None, form, "name=Ann+O%27Brien&comment=I%27d+like+to+order+2+or+3+of+these%2C+and+1+of+those.+Please+select+a+table+from+the+list+and+order+by+phone.&rating=5".into()),
        of("attack", Some("q=1%27+union+select+1,2--"), "", String::new()),
        of("128 KiB of prose", None, "text/plain", large("It's all right, she said, and went to select a table from the list. ")),
        of("128 KiB of base64", None, "application/json", format!("{{\"a\":\"{}\"}}", large("aGVsbG8gd29ybGQh"))),
        of("128 KiB of JSON", None, "application/json", format!("[{}1]", "{\"id\":12345,\"name\":\"Ann O'Brien\",\"text\":\"red and blue (or not)\"},".repeat(2_000))),
        of("128 KiB of tags, not closed", None, "text/plain", large("<a ")),
        of("128 KiB of quotes and words", None, form, large("q=' and x or 1,&")),
        of("128 KiB of percent signs", None, "text/plain", large("%2527")),
        of("128 KiB of beginnings of handlers", None, "text/plain", large("<a on")),
        of("128 KiB of SELECT", None, "text/plain", large("select a,")),
        of("128 KiB of subqueries", None, "text/plain", large("(select a ")),
        of("128 KiB of CASE", None, "text/plain", large("case when a then ")),
        of("128 KiB of templates", None, "text/plain", large("{{ a ")),
        of("128 KiB of calls in strings", None, "text/plain", large("'; alert ")),
    ]
}
