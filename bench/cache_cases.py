"""What a shared HTTP cache is asked by cache_rfc.py: RFC 9111, 9110, 9211, 9213 and 5861 as cases.

A case is a few steps on one URL of its own. In each a client asks, and the origin says, if it is asked, what stands in the
step; `want` is what must come of it:

    hit     an earlier step's answer, without the origin
    miss    the origin's answer to this very request
    etag    the origin was asked with If-None-Match (and has said 304)
    lm      the same, with If-Modified-Since
    None    whatever

Kinds: `required` (a MUST of the standard, or what follows from one), `optimal` (what a good cache does), `check` (told, and not
counted: the standard leaves it open). A case counts as passed only if those that it `needs` are: who keeps nothing does not
pass by never being stale. Ids are those of the public suite (http-tests/cache-tests) where a case is the same.

Fields are written `Name: value ~ Name: value`; `@n` for a value is the HTTP date n seconds from now.
"""
from dataclasses import dataclass, field

# What is fresh for two seconds is stale after that.
STALE = 3.2
YEAR = 365 * 24 * 3600


@dataclass
class Step:
    say: str = ""
    want: str | None = None
    ask: str = ""
    method: str = "GET"
    payload: str = ""
    path: str = ""
    status: int = 200
    body: str | None = None
    # The client is to see this status (that of the origin, if nothing else), these fields (`Name`, `Name: value` or
    # `Name: >number`), none of those, and this body.
    code: int | None = None
    has: str = ""
    lacks: str = ""
    gets: str | None = None
    # The origin is to have seen these fields of the request, and none of those, and this method.
    sent: str = ""
    unsent: str = ""
    sent_method: str = ""
    # The origin closes the connection instead; closes it within the body; waits so long; says this before; says this after.
    cut: bool = False
    short: bool = False
    delay: float = 0
    interim: tuple = ()
    trailer: str = ""
    # So many clients ask this at once, and the origin is asked once.
    clients: int = 1
    # The answer must not be whole.
    broken: bool = False
    # Before the next step.
    wait: float = 0.25


@dataclass
class Case:
    id: str
    rfc: str
    kind: str
    steps: list
    needs: list = field(default_factory=list)


CASES: list[Case] = []


def case(id, rfc, kind, *steps, needs="freshness-max-age"):
    CASES.append(Case(id, rfc, kind, list(steps), needs.split()))


def again(rfc, table, needs="freshness-max-age", status=200):
    """Two alike requests. A line: kind, want (`@`: once two seconds have passed), id (`<`: another need), `|`, what is said first."""
    for line in table.strip().splitlines():
        left, _, say = line.partition("|")
        kind, want, id = left.split()
        id, _, own = id.partition("<")
        first = Step(say.strip(), status=status, wait=STALE if want.endswith("@") else 0.25)
        second = Step(want=want.rstrip("@"), status=status)
        case(id, rfc, kind, first, second, needs=own or needs)


MAX_AGE = "Cache-Control: max-age=3600"
SOON = "Cache-Control: max-age=2"
LONG_AGO = "Wed, 01 Jan 2020 00:00:00 GMT"


# --- Freshness by Cache-Control

again("9111 4.2", "check miss freshness-none |", needs="")
again("9111 4.2", "optimal hit freshness-max-age | Cache-Control: max-age=3600", needs="")
again("9111 5.2.2.1", """
required miss@ freshness-max-age-stale             | Cache-Control: max-age=2
required miss  freshness-max-age-0                 | Cache-Control: max-age=0
optimal  hit   freshness-max-age-max-minus-1       | Cache-Control: max-age=2147483647
optimal  hit   freshness-max-age-max               | Cache-Control: max-age=2147483648
optimal  hit   freshness-max-age-max-plus-1        | Cache-Control: max-age=2147483649
optimal  hit   freshness-max-age-max-plus          | Cache-Control: max-age=99999999999
required miss  freshness-max-age-age               | Date: @0 ~ Cache-Control: max-age=3600 ~ Age: 7200
check    miss  freshness-max-age-date              | Date: @-7200 ~ Cache-Control: max-age=3600
optimal  hit   freshness-max-age-expires           | Cache-Control: max-age=3600 ~ Expires: @-7200 ~ Date: @0
optimal  hit   freshness-max-age-expires-invalid   | Cache-Control: max-age=3600 ~ Expires: 0 ~ Date: @0
required miss  freshness-max-age-0-expires         | Expires: @3600 ~ Cache-Control: max-age=0 ~ Date: @0
optimal  hit   freshness-max-age-extension         | Cache-Control: foobar, max-age=3600
optimal  hit   freshness-max-age-case-insenstive   | Cache-Control: MaX-aGe=3600
required miss  freshness-max-age-negative          | Cache-Control: max-age=-3600
""")
again("9111 5.2.2.10", """
optimal  hit   freshness-s-maxage-shared                               | Cache-Control: s-maxage=3600
required miss@ freshness-max-age-s-maxage-shared-longer                | Cache-Control: max-age=3600, s-maxage=1
required miss@ freshness-max-age-s-maxage-shared-longer-reversed       | Cache-Control: s-maxage=1, max-age=3600
required miss@ freshness-max-age-s-maxage-shared-longer-multiple       | Cache-Control: max-age=3600 ~ Cache-Control: s-maxage=1
optimal  hit   freshness-max-age-s-maxage-shared-shorter               | Cache-Control: max-age=0, s-maxage=3600
optimal  hit   freshness-max-age-s-maxage-shared-shorter-expires       | Expires: @-10 ~ Cache-Control: max-age=0, s-maxage=3600
""", needs="freshness-s-maxage-shared freshness-none")
CASES[-6].needs = ["freshness-none"]

# --- How Cache-Control is read

again("9111 4.2.1", """
check    hit@  freshness-max-age-two-fresh-stale-sameline   | Cache-Control: max-age=1800, max-age=1
check    hit@  freshness-max-age-two-fresh-stale-sepline    | Cache-Control: max-age=1800 ~ Cache-Control: max-age=1
check    hit@  freshness-max-age-two-stale-fresh-sameline   | Cache-Control: max-age=1, max-age=1800
check    hit@  freshness-max-age-two-stale-fresh-sepline    | Cache-Control: max-age=1 ~ Cache-Control: max-age=1800
""")
again("9111 5.2", """
required miss@ freshness-max-age-ignore-quoted              | Cache-Control: extension="max-age=3600", max-age=1
required miss@ freshness-max-age-ignore-quoted-rev          | Cache-Control: max-age=1, extension="max-age=3600"
required miss  quoted-no-store-is-no-escape                 | Cache-Control: extension="a\\", max-age=3600", no-store
optimal  hit   quoted-no-store-is-not-said                  | Cache-Control: max-age=3600, extension="no-store"
check    hit   freshness-max-age-quoted                     | Cache-Control: max-age="3600"
check    miss  freshness-max-age-space-before-equals        | Cache-Control: max-age =3600
check    miss  freshness-max-age-space-after-equals         | Cache-Control: max-age= 3600
optimal  hit   freshness-max-age-leading-zero               | Cache-Control: max-age=003600
required miss  freshness-max-age-single-quoted              | Cache-Control: max-age='3600'
check    hit   freshness-max-age-decimal-zero               | Cache-Control: max-age=3600.0
check    hit   freshness-max-age-decimal-five               | Cache-Control: max-age=3600.5
check    hit   freshness-max-age-a100                       | Cache-Control: max-age=a3600
check    hit   freshness-max-age-100a                       | Cache-Control: max-age=3600a
optimal  hit   control-empty-elements                       | Cache-Control: , ,max-age=3600, ,
optimal  hit   control-tab                                  | Cache-Control: public,\tmax-age=3600
""".replace("\\t", "\t"))

# --- Age

again("9111 5.1", """
required hit   age-parse-nonnumeric        | Date: @0 ~ Cache-Control: max-age=3600 ~ Age: abc
required hit   age-parse-negative          | Date: @0 ~ Cache-Control: max-age=3600 ~ Age: -7200
required hit   age-parse-float             | Date: @0 ~ Cache-Control: max-age=3600 ~ Age: 7200.0
required miss  age-parse-large-minus-one   | Date: @0 ~ Cache-Control: max-age=3600 ~ Age: 2147483647
required miss  age-parse-large             | Date: @0 ~ Cache-Control: max-age=3600 ~ Age: 2147483648
required miss  age-parse-larger            | Date: @0 ~ Cache-Control: max-age=3600 ~ Age: 2147483649
required miss  age-parse-suffix            | Date: @0 ~ Cache-Control: max-age=3600 ~ Age: 7200, 0
required hit   age-parse-prefix            | Date: @0 ~ Cache-Control: max-age=3600 ~ Age: 0, 7200
required miss  age-parse-suffix-twoline    | Date: @0 ~ Cache-Control: max-age=3600 ~ Age: 7200 ~ Age: 0
required hit   age-parse-prefix-twoline    | Date: @0 ~ Cache-Control: max-age=3600 ~ Age: 0 ~ Age: 7200
required hit   age-parse-dup-0             | Date: @0 ~ Cache-Control: max-age=3600 ~ Age: 0, 0
required hit   age-parse-dup-0-twoline     | Date: @0 ~ Cache-Control: max-age=3600 ~ Age: 0 ~ Age: 0
required hit   age-parse-dup-old           | Date: @0 ~ Cache-Control: max-age=10000 ~ Age: 3600 ~ Age: 3600
check    miss  age-parse-parameter         | Date: @0 ~ Cache-Control: max-age=3600 ~ Age: 7200;foo=bar
check    miss  age-parse-numeric-parameter | Date: @0 ~ Cache-Control: max-age=3600 ~ Age: 7200;foo=111
""", needs="freshness-max-age-age")
case("other-age-gen", "9111 4", "required", Step(MAX_AGE + " ~ Date: @0", wait=STALE), Step(want="hit", has="Age: >2"))
case("other-age-update-expires", "9111 4", "required", Step(f"Expires: @{YEAR} ~ Date: @0 ~ Age: 30", wait=STALE),
     Step(want="hit", has="Age: >32"), needs="freshness-expires-future")
case("other-age-update-max-age", "9111 4", "required", Step(MAX_AGE + " ~ Date: @0 ~ Age: 30", wait=STALE),
     Step(want="hit", has="Age: >32"))
case("other-age-delay", "9111 4.2.3", "check", Step(MAX_AGE + " ~ Date: @0", delay=2.2, has="Age: >0"))
case("age-of-a-slow-answer", "9111 4.2.3", "required", Step("Cache-Control: max-age=3600 ~ Age: 10", delay=2.2),
     Step(want="hit", has="Age: >11"))

# --- Expires

again("9111 5.3", f"""
optimal  hit   freshness-expires-future<freshness-none | Expires: @{YEAR} ~ Date: @0
required miss  freshness-expires-past                  | Expires: @-{YEAR} ~ Date: @0
required miss  freshness-expires-present               | Expires: @0 ~ Date: @0
required miss  freshness-expires-old-date              | Expires: @300 ~ Date: @400
required miss  freshness-expires-invalid               | Expires: 0 ~ Date: @0
required miss  freshness-expires-invalid-last          | Expires: soon ~ Date: @0 ~ Last-Modified: @-{YEAR}
optimal  hit   freshness-expires-invalid-date          | Date: foo ~ Expires: @10
required miss  freshness-expires-age-slow-date         | Date: @-10 ~ Expires: @10 ~ Age: 25
required miss  freshness-expires-age-fast-date         | Date: @10 ~ Expires: @20 ~ Age: 15
required miss@ freshness-expires-stale                 | Expires: @2 ~ Date: @0
optimal  hit   freshness-expires-no-date               | Expires: @3600
""", needs="freshness-expires-future")
again("9110 5.6.7", """
check    hit   freshness-expires-wrong-case-weekday      | Expires: THU, 18 Aug 2050 02:01:18 GMT ~ Date: @0
check    hit   freshness-expires-wrong-case-month        | Expires: Thu, 18 AUG 2050 02:01:18 GMT ~ Date: @0
check    hit   freshness-expires-wrong-case-tz           | Expires: Thu, 18 Aug 2050 02:01:18 gMT ~ Date: @0
check    hit   freshness-expires-invalid-utc             | Expires: Thu, 18 Aug 2050 02:01:18 UTC ~ Date: @0
check    hit   freshness-expires-invalid-2-digit-year    | Expires: Thu, 18 Aug 50 02:01:18 GMT ~ Date: @0
check    hit   freshness-expires-invalid-no-comma        | Expires: Thu 18 Aug 2050 02:01:18 GMT ~ Date: @0
check    hit   freshness-expires-invalid-multiple-spaces | Expires: Thu, 18  Aug  2050 02:01:18 GMT ~ Date: @0
check    hit   freshness-expires-invalid-date-dashes     | Expires: Thu, 18-Aug-2050 02:01:18 GMT ~ Date: @0
check    hit   freshness-expires-invalid-time-periods    | Expires: Thu, 18 Aug 2050 02.01.18 GMT ~ Date: @0
check    hit   freshness-expires-invalid-1-digit-hour    | Expires: Thu, 18 Aug 2050 2:01:18 GMT ~ Date: @0
required hit   freshness-expires-ansi-c                  | Expires: Thu Aug 18 02:01:18 2050 ~ Date: @0
required hit   freshness-expires-rfc850                  | Expires: Thursday, 18-Aug-50 02:01:18 GMT ~ Date: @0
""", needs="freshness-expires-future")

# --- Directives of responses

again("9111 5.2.2", """
required miss  cc-resp-private-shared            | Cache-Control: private, max-age=3600
required miss  cc-resp-no-store                  | Cache-Control: no-store
required miss  cc-resp-no-store-case-insensitive | Cache-Control: No-StOrE
required miss  cc-resp-no-store-fresh            | Cache-Control: max-age=10000, no-store ~ Expires: @10000 ~ Date: @0
required miss  cc-resp-no-cache                  | Cache-Control: max-age=10000, no-cache ~ Expires: @10000 ~ Date: @0
required miss  cc-resp-no-cache-case-insensitive | Cache-Control: max-age=10000, No-CaChE ~ Expires: @10000 ~ Date: @0
optimal  etag  cc-resp-no-cache-revalidate       | Cache-Control: no-cache ~ ETag: "abcd"
optimal  etag  cc-resp-no-cache-revalidate-fresh | Cache-Control: max-age=10000, no-cache ~ ETag: "abcd" ~ Expires: @10000 ~ Date: @0
optimal  hit   cc-resp-must-revalidate-fresh     | Cache-Control: max-age=10000, must-revalidate ~ ETag: "abcd"
optimal  hit   cc-resp-proxy-revalidate-fresh    | Cache-Control: max-age=10000, proxy-revalidate ~ ETag: "abcd"
optimal  hit   cc-resp-immutable-shared          | Cache-Control: max-age=10000, immutable ~ ETag: "abcd"
required miss@ cc-resp-immutable-stale-shared    | Cache-Control: max-age=2, immutable
""", needs="freshness-none")
for name, after in ("no-store", "no-store"), ("max-age", "no-store, max-age=0"):
    case(f"cc-resp-no-store-old-{'new' if name == 'no-store' else name}", "9111 5.2.2.5", "check",
         Step("Cache-Control: max-age=10000 ~ A: 1"), Step(f"Cache-Control: {after} ~ A: 2"), Step(want="hit", has="A: 1"),
         needs="cc-resp-no-store")
case("headers-omit-headers-listed-in-Cache-Control-no-cache-single", "9111 5.2.2.4", "check",
     Step('Cache-Control: no-cache="a" ~ A: 1 ~ B: 2 ~ Cache-Control: max-age=3600'), Step(want="hit", has="B: 2", lacks="A"))
case("headers-omit-headers-listed-in-Cache-Control-no-cache", "9111 5.2.2.4", "check",
     Step('Cache-Control: no-cache="a, b" ~ A: 1 ~ B: 2 ~ C: 3 ~ Cache-Control: max-age=3600'), Step(want="hit", has="C: 3", lacks="A ~ B"))
case("headers-omit-headers-listed-in-Cache-Control-private", "9111 5.2.2.7", "required",
     Step('Cache-Control: private="a", max-age=3600 ~ A: 1 ~ B: 2'), Step(lacks="A: 1"))
case("cc-resp-must-revalidate-stale", "9111 5.2.2.2", "required", Step('Cache-Control: max-age=2, must-revalidate ~ ETag: "abcd"', wait=0.1),
     Step(want="hit", wait=STALE), Step('Cache-Control: max-age=2, must-revalidate ~ ETag: "abcd"', want="etag"), needs="freshness-none")

# --- Heuristic freshness (4.2.2)

for status, want in [(200, "hit"), (201, "miss"), (202, "miss"), (203, "hit"), (204, "hit"), (300, "hit"), (301, "hit"), (302, "miss"),
                     (308, "hit"), (403, "miss"), (404, "hit"), (405, "hit"), (410, "hit"), (414, "hit"), (500, "miss"), (501, "hit"),
                     (502, "miss"), (503, "miss"), (504, "miss"), (599, "miss")]:
    kind = "optimal" if want == "hit" else "required"
    again("9111 4.2.2", f"{kind} {want} heuristic-{status}-{'cached' if want == 'hit' else 'not_cached'} | Last-Modified: @-86400 ~ Date: @0",
          status=status)
again("9111 5.2.2.9", "optimal hit heuristic-599-cached | Last-Modified: @-86400 ~ Date: @0 ~ Cache-Control: public", status=599)
for delta in 5, 10, 30, 60, 300, 600, 1200, 1800, 3600, 43200, 86400:
    again("9111 4.2.2", f"check hit heuristic-delta-{delta} | Last-Modified: @-{delta} ~ Date: @0")
again("9111 4.2.2", """
check    hit   other-heuristic-content-disposition-attachment | Last-Modified: @-100000 ~ Date: @0 ~ Content-Disposition: attachment; filename=example.txt
""", needs="heuristic-200-cached")

# --- Status codes with explicit freshness (3)

for status in 200, 203, 204, 299, 301, 302, 303, 307, 308, 400, 404, 410, 499, 500, 502, 503, 504, 599:
    again("9111 3", f"optimal hit status-{status}-fresh | Cache-Control: max-age=3600 ~ Date: @0", status=status)
    again("9111 3", f"required miss status-{status}-stale | Expires: @-5000 ~ Last-Modified: @-100000 ~ Date: @0", status=status,
          needs=f"status-{status}-fresh")
again("9111 5.2.2.3", "required miss status-599-must-understand | Cache-Control: max-age=3600, no-store, must-understand", status=599,
      needs="status-599-fresh")
again("9111 5.2.2.3", "optimal hit status-200-must-understand | Cache-Control: max-age=3600, no-store, must-understand",
      needs="status-200-fresh cc-resp-no-store-fresh")
case("status-206-as-whole", "9111 3.3", "required",
     Step(MAX_AGE + " ~ Content-Range: bytes 0-4/10", status=206, body="01234", ask="Range: bytes=0-4"), Step(want="miss"))

# --- Vary (4.1)

VARY = "Cache-Control: max-age=5000 ~ Last-Modified: @-3000 ~ Date: @0 ~ Vary: "


def vary(id, kind, fields, first, second, want, needs="vary-match", rfc="9111 4.1"):
    case(id, rfc, kind, Step(VARY + fields, ask=first), Step(want=want, ask=second), needs=needs)


TWO, THREE = "Foo: 1 ~ Bar: abc", "Foo: 1 ~ Bar: abc ~ Baz: 789"
vary("vary-match", "optimal", "Foo", "Foo: 1", "Foo: 1", "hit", "freshness-max-age")
vary("vary-no-match", "required", "Foo", "Foo: 1", "Foo: 2", "miss")
vary("vary-omit-stored", "required", "Foo", "", "Foo: 1", "miss")
vary("vary-omit", "required", "Foo", "Foo: 1", "", "miss")
vary("vary-cache-key", "optimal", "Foo", "Foo: 1 ~ Other: 2", "Foo: 1 ~ Other: 3", "hit")
vary("vary-2-match", "optimal", "Foo, Bar", TWO, TWO, "hit")
vary("vary-2-no-match", "required", "Foo, Bar", TWO, "Foo: 2 ~ Bar: abc", "miss", "vary-2-match")
vary("vary-2-match-omit", "required", "Foo, Bar", TWO, "", "miss", "vary-2-match")
vary("vary-3-match", "optimal", "Foo, Bar, Baz", THREE, THREE, "hit", "vary-2-match")
vary("vary-3-no-match", "required", "Foo, Bar, Baz", THREE, "Foo: 2 ~ Bar: abc ~ Baz: 789", "miss", "vary-3-match")
vary("vary-3-order", "required", "Foo, Bar, Baz", THREE, "Foo: 1 ~ Baz: 789 ~ Bar: abcde", "miss", "vary-3-match")
vary("vary-3-omit", "optimal", "Foo, Bar, Baz", "Foo: 1 ~ Baz: 789", "Foo: 1 ~ Baz: 789", "hit", "vary-3-match")
vary("vary-lines", "required", "Foo ~ Vary: Bar", TWO, "Foo: 1 ~ Bar: x", "miss")
vary("vary-case", "required", "fOO", "Foo: 1", "Foo: 2", "miss")
vary("vary-star", "required", "*", "Foo: 1", "Foo: 1", "miss")
vary("vary-normalise-combine", "optimal", "Foo", "Foo: 1, 2", "Foo: 1 ~ Foo: 2", "hit")
vary("vary-normalise-space", "optimal", "Foo", "Foo: 1,2", "Foo:  1, 2 ", "hit")
vary("vary-normalise-lang-order", "optimal", "Accept-Language", "Accept-Language: en, de", "Accept-Language: de, en", "hit")
vary("vary-normalise-lang-case", "optimal", "Accept-Language", "Accept-Language: en, de", "Accept-Language: eN, De", "hit")
vary("vary-normalise-lang-space", "optimal", "Accept-Language", "Accept-Language: en, de", "Accept-Language:  en ,   de", "hit")
vary("vary-normalise-lang-select", "optimal", "Accept-Language ~ Content-Language: de", "Accept-Language: en, de",
     "Accept-Language: fr;q=0.5, de;q=1.0", "hit")
vary("vary-normalise-encoding-order", "optimal", "Accept-Encoding", "Accept-Encoding: gzip, br", "Accept-Encoding: br,gzip", "hit")
for id, fields in [("star", "*"), ("star-star", "*, *"), ("star-star-lines", "* ~ Vary: *"), ("empty-star", ", *"),
                   ("empty-star-lines", " ~ Vary: *"), ("star-foo", "*, Foo"), ("foo-star", "Foo, *")]:
    vary(f"vary-syntax-{id}", "required", fields, "Foo: 1 ~ Baz: 789", "Foo: 1 ~ Baz: 789", "miss")
case("vary-invalidate", "9111 4.1", "optimal", Step(VARY + "Foo", ask="Foo: 1", body="one"),
     Step(VARY + "Foo", ask="Foo: 2", body="two", want="miss"), Step(ask="Foo: 1", want="hit", gets="one"), needs="vary-match")

# --- Validation: If-None-Match, ETag

KEPT = MAX_AGE + " ~ ETag: "


def tag(id, kind, etag, asked, code=304, needs="conditional-etag-strong-respond", say="", rfc="9110 13.1.2", **more):
    # Who answers 200 may as well have asked the origin.
    case(id, rfc, kind, Step(KEPT + etag + say), Step(want="hit" if code == 304 else None, ask="If-None-Match: " + asked, code=code, **more),
         needs=needs)


tag("conditional-etag-strong-respond", "optimal", '"abcdef"', '"abcdef"', needs="freshness-max-age")
tag("conditional-304-etag", "required", '"abcdef"', '"abcdef"', has='ETag: "abcdef"', rfc="9110 15.4.5")
tag("conditional-304-fields", "required", '"abcdef"', '"abcdef"', say=" ~ Content-Location: /a ~ Vary: Foo ~ Expires: @4000 ~ Date: @0",
    has="Content-Location: /a ~ Vary ~ Expires ~ Date ~ Cache-Control", rfc="9110 15.4.5")
tag("conditional-etag-precedence", "required", '"abcdef"', '"abcdef" ~ If-Modified-Since: @-6000', say=" ~ Last-Modified: @-5000",
    rfc="9110 13.2.2")
tag("conditional-etag-precedence-not", "required", '"abcdef"', '"other" ~ If-Modified-Since: @0', code=200,
    say=" ~ Last-Modified: @-5000", rfc="9110 13.2.2")
tag("conditional-etag-no-match", "required", '"abcdef"', '"abcde"', code=200)
tag("conditional-etag-star", "optimal", '"abcdef"', "*")
tag("conditional-etag-strong-respond-obs-text", "check", '"abcdef\xfc"', '"abcdef\xfc"')
tag("conditional-etag-quoted-respond-unquoted", "check", '"abcdef"', "abcdef")
tag("conditional-etag-unquoted-respond-unquoted", "check", "abcdef", "abcdef")
tag("conditional-etag-unquoted-respond-quoted", "check", "abcdef", '"abcdef"')
tag("conditional-etag-weak-respond", "optimal", 'W/"abcdef"', 'W/"abcdef"', needs="freshness-max-age")
tag("conditional-etag-weak-strong", "optimal", 'W/"abcdef"', '"abcdef"', needs="conditional-etag-weak-respond")
tag("conditional-etag-strong-weak", "optimal", '"abcdef"', 'W/"abcdef"')
tag("conditional-etag-weak-respond-lowercase", "check", 'w/"abcdef"', 'w/"abcdef"')
tag("conditional-etag-weak-respond-backslash", "check", 'W\\"abcdef"', 'W\\"abcdef"')
tag("conditional-etag-weak-respond-omit-slash", "check", 'W"abcdef"', 'W"abcdef"')
tag("conditional-etag-strong-respond-multiple-first", "optimal", '"abcdef"', '"abcdef", "1234", "5678"')
tag("conditional-etag-strong-respond-multiple-second", "optimal", '"abcdef"', '"1234", "abcdef", "5678"')
tag("conditional-etag-strong-respond-multiple-last", "optimal", '"abcdef"', '"1234", "5678", "abcdef"')
tag("conditional-etag-respond-comma-inside", "optimal", '"abc,def"', '"1234", "abc,def"')
tag("conditional-etag-respond-lines", "optimal", '"abcdef"', '"1234" ~ If-None-Match: "abcdef"')
case("conditional-etag-head", "9110 13.1.2", "optimal", Step(KEPT + '"abcdef"'),
     Step(method="HEAD", ask='If-None-Match: "abcdef"', want="hit", code=304), needs="conditional-etag-strong-respond head-from-get")
case("conditional-etag-vary-headers", "9111 4.3.1", "required", Step('Cache-Control: max-age=2 ~ ETag: "abcdef" ~ Vary: Abc', ask="Abc: 123", wait=STALE),
     Step('Cache-Control: max-age=2 ~ ETag: "abcdef" ~ Vary: Abc', ask="Abc: 123", want="etag", sent="Abc: 123"),
     needs="conditional-etag-strong-generate")
case("conditional-etag-vary-headers-mismatch", "9111 4.1", "check",
     Step('Cache-Control: max-age=3600 ~ ETag: "abcdef" ~ Vary: Abc', ask="Abc: 123"), Step(ask="Abc: 456", unsent="If-None-Match"),
     needs="conditional-etag-vary-headers vary-no-match")
for id, kind, etag in [("strong-generate", "optimal", '"abcdef"'), ("weak-generate-weak", "optimal", 'W/"abcdef"'),
                       ("strong-generate-unquoted", "check", "abcdef")]:
    case(f"conditional-etag-{id}", "9111 4.3.1", kind, Step(f"{SOON} ~ ETag: {etag}", wait=STALE),
         Step(f"{SOON} ~ ETag: {etag}", want="etag", sent=f"If-None-Match: {etag}"), needs="freshness-max-age-stale")
case("conditional-etag-forward", "9111 4.3", "check", Step(ask='If-None-Match: "abcdef"', sent='If-None-Match: "abcdef"'), needs="")
case("conditional-etag-forward-unquoted", "9111 4.3", "check", Step(ask="If-None-Match: abcdef", sent='If-None-Match: "abcdef"'), needs="")
case("conditional-etag-own-after-validation", "9111 4.3.2", "optimal", Step(f'{SOON} ~ ETag: "abcdef"', wait=STALE),
     Step(f'{SOON} ~ ETag: "abcdef"', ask='If-None-Match: "abcdef"', want="etag", code=304), needs="conditional-etag-strong-generate")
case("conditional-etag-changed", "9111 4.3.3", "required", Step(f'{SOON} ~ ETag: "a" ~ A: 1', wait=STALE, body="old"),
     Step(f'{MAX_AGE} ~ ETag: "b" ~ A: 2', want="miss", body="new", gets="new"), Step(want="hit", has="A: 2", gets="new"),
     needs="freshness-max-age-stale")
case("conditional-other-client-has-older", "9111 4.3.2", "required", Step(f'{MAX_AGE} ~ ETag: "b"', body="new"),
     Step(ask='If-None-Match: "a"', code=200, body="new"))
case("conditional-validation-error", "9111 4.3.3", "required", Step('Cache-Control: max-age=2, must-revalidate ~ ETag: "a"', wait=STALE),
     Step(status=503, code=503), needs="freshness-max-age-stale")

# --- Validation: If-Modified-Since, Last-Modified


def since(id, kind, say, asked, code, want="hit", wait=0.25, needs="freshness-max-age"):
    want = want if code == 304 else None
    case(id, "9110 13.1.3", kind, Step(say, wait=wait), Step(say, want=want, ask="If-Modified-Since: " + asked, code=code), needs=needs)


OLD = MAX_AGE + " ~ Date: @0 ~ Last-Modified: " + LONG_AGO
since("conditional-lm-fresh", "optimal", OLD, LONG_AGO, 304)
since("conditional-lm-fresh-earlier", "optimal", OLD, "Wed, 01 Jan 2020 00:00:01 GMT", 304)
since("conditional-lm-fresh-later", "required", OLD, "Tue, 31 Dec 2019 23:59:59 GMT", 200)
since("conditional-lm-fresh-invalid", "required", OLD, "yesterday", 200)
since("conditional-lm-stale", "optimal", f"{SOON} ~ Date: @0 ~ Last-Modified: {LONG_AGO}", LONG_AGO, 304, "lm", STALE)
since("conditional-lm-fresh-no-lm", "optimal", MAX_AGE + " ~ Date: @0", "@2", 304)
since("conditional-lm-fresh-no-lm-later", "required", MAX_AGE + " ~ Date: @0", "@-3000", 200)
since("conditional-lm-fresh-rfc850", "optimal", OLD, "Wednesday, 01-Jan-20 00:00:00 GMT", 304)
since("conditional-lm-fresh-ansi-c", "optimal", OLD, "Wed Jan  1 00:00:00 2020", 304)
case("conditional-lm-generate", "9111 4.3.1", "optimal", Step(f"{SOON} ~ Last-Modified: {LONG_AGO}", wait=STALE),
     Step(f"{SOON} ~ Last-Modified: {LONG_AGO}", want="lm", sent=f"If-Modified-Since: {LONG_AGO}"), needs="freshness-max-age-stale")
case("conditional-both-generate", "9111 4.3.1", "optimal", Step(f'{SOON} ~ Last-Modified: {LONG_AGO} ~ ETag: "a"', wait=STALE),
     Step(f'{SOON} ~ Last-Modified: {LONG_AGO} ~ ETag: "a"', want="etag", sent='If-None-Match: "a"'), needs="freshness-max-age-stale")

# --- What a 304 changes (3.2, 4.3.4) and what is kept at all (3.1)

FIELDS = [  # name, values; what a 304 does to it; whether it is kept
    ("Test-Header", "a-1", "b-2", "required", True), ("X-Test-Header", "a-1", "b-2", "required", True),
    ("Content-Foo", "a-1", "b-2", "required", True), ("X-Content-Foo", "a-1", "b-2", "required", True),
    ("Cache-Control", "max-age=2", "max-age=3600", "required", True), ("Connection", "a-1", "", "", False),
    ("Content-Encoding", "x-one", "x-two", "check", True), ("Content-Length", "5", "10", "not", True),
    ("Content-Location", "/foo", "/bar", "check", True),
    ("Content-MD5", "rL0Y20zC+Fzt72VPzMSk2A==", "N7UdGUp1E+RbVvZSTy1R8g==", "check", True), ("Content-Range", "x-1", "x-2", "check", True),
    ("Content-Security-Policy", "default-src 'self'", "default-src 'self' cdn.example.com", "check", True),
    ("Content-Type", "text/plain", "text/plain;charset=utf-8", "check", True), ("Clear-Site-Data", "cache", "cookies", "check", True),
    ("ETag", '"abcdef"', '"ghijkl"', "check", True),
    ("Expires", "Fri, 01 Jan 2038 01:01:01 GMT", "Mon, 11 Jan 2038 11:11:11 GMT", "check", True), ("Keep-Alive", "timeout=77", "", "", False),
    ("Proxy-Authenticate", "Basic realm=a", "", "", False), ("Proxy-Authentication-Info", "a-1", "", "", False),
    ("Proxy-Authorization", "a-1", "", "", False), ("Proxy-Connection", "a-1", "", "", False),
    ("Public-Key-Pins", "a-1", "b-2", "check", True), ("Set-Cookie", "a=b", "a=c", "check", True),
    ("Set-Cookie2", "a=b", "a=c", "check", True), ("TE", "a-1", "", "", False), ("Upgrade", "a-1", "", "", False),
    ("X-Frame-Options", "deny", "sameorigin", "check", True), ("X-XSS-Protection", "1", "1; mode=block", "check", True),
]
case("304-lm-use-stored-Test-Header", "9111 4.3.4", "required", Step(f"{SOON} ~ Last-Modified: {LONG_AGO} ~ Test-Header: a-1", wait=STALE),
     Step(f"Last-Modified: {LONG_AGO}", want="lm", has="Test-Header: a-1"), needs="conditional-lm-generate")
for name, one, two, update, kept in FIELDS:
    length = {"body": "01234"} if name == "Content-Length" else {}
    own = f"{name}: {one}" + ("" if name == "Cache-Control" else " ~ Cache-Control: max-age=3600")
    own = own.replace("max-age=2", "max-age=3600") if name == "Cache-Control" else own
    there = {"has": f"{name}: {one}"} if kept and name != "Cache-Control" else {} if kept else {"lacks": f"{name}: {one}"}
    if length:
        own = MAX_AGE
    case(f"headers-store-{name}", "9111 3.1", "required", Step(own, **length), Step(want="hit", **there, **({"gets": "01234"} if length else {})))
    if not update:
        continue
    etag = ' ~ ETag: "304"' if name != "ETag" else f" ~ Last-Modified: {LONG_AGO}"
    control = "" if name == "Cache-Control" else f" ~ {SOON}"
    again_control = "" if name == "Cache-Control" else f" ~ {MAX_AGE}"
    before = f"{name}: {one}{control}{etag}" if not length else f"{SOON}{etag}"
    after = f"{name}: {two}{again_control}{etag}"
    expected = one if update == "not" else two
    want = "etag" if name != "ETag" else "lm"
    case(f"304-etag-update-response-{name}", "9111 3.2", "required" if update == "not" else update, Step(before, wait=STALE, **length),
         Step(after, want=want, has=f"{name}: {expected}", **length), Step(want="hit", has=f"{name}: {expected}", **length),
         needs="304-lm-use-stored-Test-Header")
case("headers-omit-headers-listed-in-Connection", "9111 3.1", "required", Step(MAX_AGE + " ~ Connection: a, b ~ A: 1 ~ B: 2 ~ C: 3"),
     Step(want="hit", has="C: 3", lacks="A ~ B"))
case("304-other-etag", "9111 4.3.4", "required", Step(f'{SOON} ~ ETag: "a" ~ A: 1', wait=STALE),
     Step(f'{MAX_AGE} ~ ETag: "b" ~ A: 2', want="etag"), Step(f'{MAX_AGE} ~ ETag: "b" ~ A: 2', want=None, lacks="A: 1"),
     needs="conditional-etag-strong-generate")
case("304-freshens", "9111 4.3.4", "required", Step(f'{SOON} ~ ETag: "a"', wait=STALE), Step(f'{MAX_AGE} ~ ETag: "a"', want="etag"),
     Step(want="hit"), needs="conditional-etag-strong-generate")
case("304-age", "9111 4.3.4", "required", Step(f'{SOON} ~ ETag: "a" ~ Age: 1', wait=STALE),
     Step(f'Cache-Control: max-age=3600 ~ ETag: "a" ~ Date: @0', want="etag"), Step(want="hit", has="Age: <3"),
     needs="conditional-etag-strong-generate")

# --- HEAD

case("head-from-get", "9111 4", "optimal", Step(MAX_AGE, body="01234"), Step(method="HEAD", want="hit", has="Content-Length: 5", gets=""))
case("head-not-for-get", "9110 9.3.2", "required", Step(MAX_AGE, method="HEAD"), Step(want="miss"))
case("head-writethrough", "9111 4.3.5", "check", Step(SOON, wait=STALE), Step(method="HEAD", sent_method="HEAD"), needs="freshness-max-age-stale")
case("head-200-retain", "9111 4.3.5", "check", Step(SOON + " ~ A: 1", wait=STALE), Step(method="HEAD", sent_method="HEAD", has="A: 1"),
     needs="head-writethrough")
# Length and validators are those of what is kept.
HELD = f' ~ ETag: "a" ~ Last-Modified: {LONG_AGO}'
case("head-200-freshness-update", "9111 4.3.5", "check", Step(SOON + HELD, wait=STALE), Step(MAX_AGE + HELD, method="HEAD"),
     Step(want="hit"), needs="freshness-max-age-stale")
case("head-200-update", "9111 4.3.5", "check", Step(SOON + HELD + " ~ A: 1", wait=STALE),
     Step(MAX_AGE + HELD + " ~ A: 2", method="HEAD"), Step(want="hit", has="A: 2"), needs="head-200-freshness-update")
case("head-410-update", "9111 4.3.5", "check", Step(SOON + " ~ A: 1", wait=STALE), Step(MAX_AGE + " ~ A: 2", method="HEAD", status=410),
     Step(want="hit", has="A: 2"), needs="head-200-freshness-update")
case("head-200-other-length", "9111 4.3.5", "required", Step(SOON + HELD, body="01234", wait=STALE),
     Step(MAX_AGE + HELD, method="HEAD", body="0123456789"), Step(want="miss"), needs="freshness-max-age-stale")
case("head-200-other-etag", "9111 4.3.5", "required", Step(SOON + ' ~ ETag: "a"', wait=STALE),
     Step(MAX_AGE + ' ~ ETag: "b"', method="HEAD"), Step(ask="A: 1", unsent='If-None-Match: "b"', want="miss"), needs="freshness-max-age-stale")

# --- Invalidation (4.4)

for method in "POST", "PUT", "DELETE", "M-SEARCH":
    payload = {"method": method, "payload": "abc"}
    case(f"invalidate-{method}", "9111 4.4", "required", Step(MAX_AGE), Step(**payload), Step(want="miss"))
    case(f"invalidate-{method}-failed", "9111 4.4", "optimal", Step(MAX_AGE), Step(**payload, status=500), Step(want="hit"),
         needs=f"invalidate-{method}")
    for short, name in ("location", "Location"), ("cl", "Content-Location"):
        case(f"invalidate-{method}-{short}", "9111 4.4", "check", Step(MAX_AGE, path="there"),
             Step(f"{name}: BASE/there", **payload), Step(path="there", want="miss"), needs=f"invalidate-{method}")
case("invalidate-other-host", "9111 4.4", "required", Step(MAX_AGE, path="there"),
     Step("Location: http://other.example/RUN/there", method="POST", payload="abc"), Step(path="there", want="hit"))
case("invalidate-GET-not", "9111 4.4", "optimal", Step(MAX_AGE), Step(method="OPTIONS"), Step(want="hit"))
case("method-POST", "9110 9.3.3", "check", Step(f"Expires: @{YEAR} ~ Content-Location: BASE ~ Date: @0", method="POST", payload="12345"),
     Step(want="hit"))
case("method-POST-not-kept", "9110 9.3.3", "required", Step(MAX_AGE, method="POST", payload="12345"),
     Step(method="POST", payload="12345", want="miss"))

# --- Stale responses (4.2.4, RFC 5861)

case("stale-close", "9111 4.2.4", "check", Step(SOON, wait=STALE), Step(cut=True, want="hit"), needs="freshness-max-age-stale")
case("stale-503", "9111 4.2.4", "check", Step(SOON, wait=STALE), Step(status=503, code=200, want="hit"), needs="freshness-max-age-stale")
case("stale-while-revalidate", "5861 3", "optimal", Step('Cache-Control: max-age=1, stale-while-revalidate=3600 ~ ETag: "abc"', wait=STALE),
     Step(want="hit"), needs="freshness-max-age-stale")
case("stale-while-revalidate-refreshed", "5861 3", "optimal",
     Step('Cache-Control: max-age=1, stale-while-revalidate=3600 ~ A: 1', wait=STALE), Step(MAX_AGE + " ~ A: 2", want="hit", wait=1),
     Step(want="hit", has="A: 2"), needs="stale-while-revalidate")
case("stale-while-revalidate-window", "5861 3", "required", Step("Cache-Control: max-age=1, stale-while-revalidate=1", wait=STALE),
     Step(want="miss"), needs="stale-while-revalidate")
case("stale-sie-close", "5861 4", "optimal", Step("Cache-Control: max-age=2, stale-if-error=60", wait=STALE), Step(cut=True, want="hit"),
     needs="freshness-max-age-stale")
case("stale-sie-503", "5861 4", "optimal", Step("Cache-Control: max-age=2, stale-if-error=60", wait=STALE),
     Step(status=503, code=200, want="hit"), needs="freshness-max-age-stale")
case("stale-sie-expired", "5861 4", "required", Step("Cache-Control: max-age=1, stale-if-error=1", wait=STALE), Step(status=503, code=503),
     needs="stale-sie-503")
for directive in "must-revalidate", "proxy-revalidate", "no-cache", "s-maxage=2":
    case(f"stale-close-{directive}", "9111 4.2.4", "required", Step(f"Cache-Control: max-age=2, {directive}", wait=STALE),
         Step(cut=True, code=0, lacks="X-Step"), needs="freshness-max-age-stale")
    case(f"stale-sie-{directive}", "9111 4.2.4", "required" if directive != "s-maxage=2" else "check",
         Step(f"Cache-Control: max-age=2, stale-if-error=60, {directive}", wait=STALE), Step(cut=True, code=0, lacks="X-Step"),
         needs="stale-sie-close")

# --- Ranges from what is kept, and of what is not

TEN = {"body": "0123456789"}


def part(id, kind, range, code, gets, rfc="9110 14.2", say="", ask="", **more):
    case(id, rfc, kind, Step(MAX_AGE + say, **TEN), Step(ask=f"Range: {range}{ask}", want="hit", code=code, gets=gets, **more))


part("partial-store-complete-reuse-partial", "optimal", "bytes=0-1", 206, "01", has="Content-Range: bytes 0-1/10")
part("partial-store-complete-reuse-partial-no-last", "optimal", "bytes=1-", 206, "123456789", has="Content-Range: bytes 1-9/10")
part("partial-store-complete-reuse-partial-suffix", "optimal", "bytes=-1", 206, "9", has="Content-Range: bytes 9-9/10")
part("partial-beyond", "optimal", "bytes=10-", 416, None, has="Content-Range: bytes */10", rfc="9110 15.5.17")
part("partial-unknown-unit", "required", "lines=0-1", 200, "0123456789")
part("partial-invalid", "optimal", "bytes=5-2", 200, "0123456789", rfc="9110 14.1.1")
part("partial-use-stored-headers", "required", "bytes=0-1", 206, "01", say=" ~ A: 1", has="A: 1", rfc="9111 3.4")
part("partial-if-range-etag", "optimal", "bytes=0-1", 206, "01", say=' ~ ETag: "a"', ask=' ~ If-Range: "a"', rfc="9110 13.1.5")
part("partial-if-range-other", "required", "bytes=0-1", 200, "0123456789", say=' ~ ETag: "a"', ask=' ~ If-Range: "b"', rfc="9110 13.1.5")
part("partial-if-range-weak", "required", "bytes=0-1", 200, "0123456789", say=' ~ ETag: W/"a"', ask=' ~ If-Range: W/"a"', rfc="9110 13.1.5")
part("partial-if-none-match", "required", "bytes=0-1", 304, "", say=' ~ ETag: "a"', ask=' ~ If-None-Match: "a"', rfc="9110 13.2.2")
case("partial-head", "9110 14.2", "required", Step(MAX_AGE, **TEN), Step(method="HEAD", ask="Range: bytes=0-1", want="hit", code=200))
case("partial-several", "9110 14.6", "optimal", Step(MAX_AGE, **TEN),
     Step(ask="Range: bytes=0-1,8-9", want="hit", code=206, has="Content-Type: multipart/byteranges*"))
case("partial-several-overlap", "9110 14.6", "check", Step(MAX_AGE, **TEN),
     Step(ask="Range: bytes=0-4,2-6", want="hit", code=206, has="Content-Range: bytes 0-6/10", gets="0123456"))
PART = {"say": MAX_AGE + " ~ Content-Range: bytes 5-9/10 ~ ETag: \"a\"", "status": 206, "body": "56789", "ask": "Range: bytes=-5"}
case("partial-store-partial-reuse-partial", "9111 3.3", "optimal", Step(**PART), Step(ask="Range: bytes=-5", want="hit", code=206, gets="56789"))
case("partial-store-partial-reuse-partial-byterange", "9111 3.3", "optimal", Step(**PART), Step(ask="Range: bytes=6-8", want="hit", code=206, gets="678"))
case("partial-store-partial-reuse-partial-absent", "9111 3.3", "optimal", Step(**PART), Step(ask="Range: bytes=6-", want="hit", code=206, gets="6789"))
case("partial-store-partial-reuse-partial-suffix", "9111 3.3", "optimal", Step(**PART), Step(ask="Range: bytes=-1", want="hit", code=206, gets="9"))
case("partial-store-partial-complete", "9111 3.4", "optimal",
     Step(MAX_AGE + ' ~ Content-Range: bytes 0-4/10 ~ ETag: "a"', status=206, body="01234", ask="Range: bytes=0-4"),
     Step(MAX_AGE + ' ~ Content-Range: bytes 5-9/10 ~ ETag: "a"', status=206, body="56789", code=0, sent="Range: bytes=5-"))
case("partial-short", "9111 3.3", "required", Step(MAX_AGE, short=True, broken=True, **TEN), Step(want="miss"))
case("partial-short-chunked", "9111 3.3", "required", Step(MAX_AGE + " ~ Transfer-Encoding: chunked", short=True, broken=True, **TEN), Step(want="miss"))

# --- Directives of requests (5.2.1): a cache may honour them


def asked(id, want, say, ask, wait=0.25, kind="check", **more):
    case(id, "9111 5.2.1", kind, Step(say, wait=wait), Step(want=want, ask="Cache-Control: " + ask, **more))


asked("ccreq-ma0", "miss", MAX_AGE, "max-age=0")
asked("ccreq-ma1", "miss", MAX_AGE, "max-age=1", wait=STALE)
asked("ccreq-magreaterage", "miss", MAX_AGE + " ~ Age: 1800", "max-age=600")
asked("ccreq-max-stale", "hit", SOON, "max-stale=1000", wait=STALE)
asked("ccreq-max-stale-age", "hit", "Cache-Control: max-age=1500 ~ Age: 2000", "max-stale=1000")
asked("ccreq-min-fresh", "miss", "Cache-Control: max-age=1500", "min-fresh=2000")
asked("ccreq-min-fresh-age", "miss", "Cache-Control: max-age=1500 ~ Age: 1000", "min-fresh=1000")
asked("ccreq-no-cache", "miss", MAX_AGE, "no-cache")
asked("ccreq-no-cache-lm", "lm", MAX_AGE + " ~ Last-Modified: " + LONG_AGO, "no-cache")
asked("ccreq-no-cache-etag", "etag", MAX_AGE + ' ~ ETag: "abc"', "no-cache")
asked("ccreq-no-store", "miss", MAX_AGE, "no-store")
case("ccreq-no-store-first", "9111 5.2.1.5", "required", Step(MAX_AGE, ask="Cache-Control: no-store"), Step(want="miss"))
case("ccreq-oic", "9111 5.2.1.7", "check", Step(ask="Cache-Control: only-if-cached", code=504))
asked("ccreq-oic-kept", "hit", MAX_AGE, "only-if-cached", kind="optimal")
case("pragma-request-no-cache", "9111 5.4", "check", Step(MAX_AGE), Step(ask="Pragma: no-cache", want="miss"))
case("pragma-request-extension", "9111 5.4", "check", Step(MAX_AGE), Step(ask="Pragma: unrecognised-extension", want="hit"))
again("9111 5.4", """
check hit pragma-response-no-cache           | Cache-Control: max-age=3600 ~ Pragma: no-cache
check hit pragma-response-no-cache-heuristic | Last-Modified: @-100000 ~ Pragma: no-cache
check hit pragma-response-extension          | Cache-Control: max-age=3600 ~ Pragma: unrecognised-extension
""")

# --- Authorization (3.5)

for id, kind, say, want in [("", "required", f"Expires: @{YEAR} ~ Date: @0", "miss"), ("-max-age", "required", MAX_AGE, "miss"),
                            ("-public", "optimal", "Cache-Control: max-age=3600, public", "hit"),
                            ("-must-revalidate", "optimal", "Cache-Control: max-age=3600, must-revalidate", "hit"),
                            ("-smaxage", "optimal", "Cache-Control: s-maxage=3600", "hit")]:
    case("other-authorization" + id, "9111 3.5", kind, Step(say, ask="Authorization: FOO", sent="Authorization: FOO"), Step(want=want),
         needs="freshness-expires-future" if not id else "freshness-max-age other-authorization")
CASES[-4].needs = ["freshness-max-age"]

# --- CDN-Cache-Control (RFC 9213)

again("9213 2", """
optimal  hit   cdn-max-age                             | CDN-Cache-Control: max-age=3600
optimal  hit   cdn-max-age-max                         | CDN-Cache-Control: max-age=2147483648
optimal  hit   cdn-max-age-max-plus                    | CDN-Cache-Control: max-age=99999999999
required miss  cdn-max-age-age<cdn-max-age             | Date: @0 ~ CDN-Cache-Control: max-age=3600 ~ Age: 7200
check    miss@ cdn-max-age-space-before-equals         | Cache-Control: max-age=1 ~ CDN-Cache-Control: max-age =100
check    miss@ cdn-max-age-space-after-equals          | Cache-Control: max-age=1 ~ CDN-Cache-Control: max-age= 100
required miss  cdn-max-age-0<cdn-max-age               | CDN-Cache-Control: max-age=0
optimal  hit   cdn-max-age-extension                   | CDN-Cache-Control: foobar, max-age=3600
check    hit   cdn-max-age-case-insensitive            | CDN-Cache-Control: MaX-aGe=3600
optimal  hit   cdn-max-age-expires                     | CDN-Cache-Control: max-age=3600 ~ Expires: @-10000 ~ Date: @0
optimal  hit   cdn-max-age-cc-max-age-invalid-expires  | CDN-Cache-Control: max-age=3600 ~ Expires: 0 ~ Date: @0
required miss  cdn-max-age-0-expires<cdn-max-age       | CDN-Cache-Control: max-age=0 ~ Expires: @10000 ~ Date: @0
optimal  hit@  cdn-max-age-short-cc-max-age            | Cache-Control: max-age=1 ~ CDN-Cache-Control: max-age=3600
required miss@ cdn-max-age-long-cc-max-age<cdn-max-age | Cache-Control: max-age=3600 ~ CDN-Cache-Control: max-age=1
required miss  cdn-private<freshness-max-age           | CDN-Cache-Control: private ~ Cache-Control: max-age=10000 ~ Expires: @10000 ~ Date: @0
required miss  cdn-no-cache<freshness-max-age          | CDN-Cache-Control: no-cache ~ Cache-Control: max-age=10000 ~ Expires: @10000 ~ Date: @0
required miss  cdn-no-store-cc-fresh<freshness-max-age | Cache-Control: max-age=10000 ~ CDN-Cache-Control: no-store ~ Expires: @10000 ~ Date: @0
optimal  hit   cdn-fresh-cc-nostore                    | Cache-Control: no-store ~ CDN-Cache-Control: max-age=10000
required miss  cdn-cc-invalid-sh-type-unknown<cdn-max-age | CDN-Cache-Control: max-age=10000, &&&&& ~ Cache-Control: no-store
required miss  cdn-cc-invalid-sh-type-wrong<cdn-max-age   | CDN-Cache-Control: max-age="10000" ~ Cache-Control: no-store
""", needs="freshness-none")
case("cdn-remove-header", "9213 2", "check", Step("Cache-Control: max-age=10000 ~ CDN-Cache-Control: foo", has="CDN-Cache-Control: foo"))
for id, has in ("cdn-remove-age-exceed", "Age"), ("cdn-date-update-exceed", "Date: @-3"), ("cdn-expires-update-exceed", "Expires"):
    case(id, "9213 2", "check", Step("Cache-Control: max-age=1 ~ CDN-Cache-Control: max-age=10000 ~ Date: @-3 ~ Expires: @1"),
         Step(want="hit", has=has), needs="cdn-max-age")

# --- Cache-Status (RFC 9211), interim answers, and the rest

case("cache-status-hit", "9211 2.1", "optimal", Step(MAX_AGE), Step(want="hit", has="Cache-Status: *; hit*"))
case("cache-status-miss", "9211 2.2", "optimal", Step(MAX_AGE, has="Cache-Status: *fwd=*"))
case("interim-102", "9110 15.2", "optimal", Step(MAX_AGE, interim=((102, ""),)), Step(want="hit"))
case("interim-103", "9110 15.2", "optimal", Step(MAX_AGE, interim=((103, "Link: </a.css>; rel=preload ~ X-A: b"),)), Step(want="hit"))
case("other-date-update", "9110 6.6.1", "required", Step(MAX_AGE + " ~ Date: @-3"), Step(want="hit", has="Date: @-3"))
case("other-date-update-expires", "9110 6.6.1", "required", Step(f"Expires: @{YEAR} ~ Date: @-3"), Step(want="hit", has="Date: @-3"),
     needs="freshness-expires-future")
case("other-date-update-expires-update", "9111 5.3", "check", Step(f"Expires: Fri, 01 Jan 2038 01:01:01 GMT ~ Date: @0"),
     Step(want="hit", has="Expires: Fri, 01 Jan 2038 01:01:01 GMT"), needs="freshness-expires-future")
case("query-args-different", "9111 2", "required", Step(MAX_AGE, path="?test=1"), Step(path="?test=2", want="miss"))
case("query-args-same", "9111 2", "optimal", Step(MAX_AGE, path="?test=1"), Step(path="?test=1", want="hit"))
case("query-empty", "9110 4.2.3", "required", Step(MAX_AGE, path="?"), Step(path="", want="miss"))
case("other-fresh-content-disposition-attachment", "9111 3", "check",
     Step(MAX_AGE + " ~ Content-Disposition: attachment; filename=example.txt"), Step(want="hit"))
case("other-set-cookie", "9111 7.3", "optimal", Step(MAX_AGE + " ~ Set-Cookie: a=b"), Step(want="hit"))
case("other-set-cookie-public", "9111 7.3", "optimal", Step("Cache-Control: public, max-age=3600 ~ Set-Cookie: a=b"), Step(want="hit"))
case("other-cookie", "9111 7.3", "optimal", Step(MAX_AGE), Step(ask="Cookie: a=b", want="hit"))
case("chunked-kept", "9112 7.1", "optimal", Step(MAX_AGE + " ~ Transfer-Encoding: chunked", **TEN), Step(want="hit", gets="0123456789"))
case("until-close-kept", "9112 6.3", "check", Step(MAX_AGE + " ~ Transfer-Encoding: none", **TEN), Step(want="hit", gets="0123456789"))
case("trailer-not-merged", "9110 6.5.1", "required", Step(MAX_AGE + " ~ Transfer-Encoding: chunked", trailer="A: 1", **TEN),
     Step(want="hit", lacks="A"), needs="chunked-kept")
case("collapse-basic", "9111 4", "optimal", Step(MAX_AGE, clients=5, delay=1))
case("collapse-private", "9111 4", "required", Step("Cache-Control: private, max-age=3600", clients=-5, delay=0.5))
