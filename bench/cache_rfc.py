#!/usr/bin/env python3
"""How well caches keep to RFC 9111 and its kin: Trestle's, nginx's, Varnish's and Apache's, asked the same.

    bench/cache_rfc.py [--trestle target/release/trestle] [--peers trestle,nginx,varnish,apache] [--case ID ...] [-v]

The cases are in cache_cases.py. Each peer stands as its manual has it in front of one origin, which answers as the case says and
notes what it was asked; every case has URLs of its own, so that all run at once. Printed: how many of the required and of
the optimal cases each peer passes, and which of them Trestle does not; with -v also what went wrong with each, and what the
peers do where the standard leaves it to them.

Needs nginx, varnish and apache2; who is not there is left out. Everything listens on ports of the system's choice on loopback, and
ends with the script. Exits with 1 if Trestle passes fewer of either kind than a peer.
"""
import argparse, asyncio, email.utils, fnmatch, json, os, pathlib, shutil, signal, socket, subprocess, sys, tempfile, time, urllib.request, uuid

from cache_cases import CASES, Step

ROOT = pathlib.Path(__file__).resolve().parent.parent
PEERS = ("trestle", "nginx", "varnish", "apache")
AT_ONCE = 150
PATIENCE = 15


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


# --- Messages


class Broken(Exception):
    """A message that is not whole."""


def split(fields):
    """`A: 1 ~ B: 2` as pairs."""
    pairs = [part.partition(":") for part in fields.split(" ~ ")] if fields else []
    return [(name.strip(), value[1:] if value.startswith(" ") else value) for name, _, value in pairs]


def dated(value, now):
    return email.utils.formatdate(now + int(value[1:]), usegmt=True) if value[:1] == "@" else value


class Fields(list):
    def all(self, name):
        return [value for key, value in self if key.lower() == name.lower()]

    def one(self, name):
        return ", ".join(self.all(name)) if self.all(name) else None


async def head(reader):
    """First line and fields; None at the end of the connection."""
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as e:
        if e.partial:
            raise Broken("the head breaks off") from e
        return None
    first, *lines = raw[:-4].decode("latin-1").split("\r\n")
    return first, Fields((name, value.strip()) for name, _, value in (line.partition(":") for line in lines))


async def body(reader, fields, until_close):
    """The body, and what follows it."""
    try:
        if (fields.one("Transfer-Encoding") or "").lower().endswith("chunked"):
            data = b""
            while True:
                size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
                if size:
                    data += await reader.readexactly(size)
                    await reader.readexactly(2)
                    continue
                while await reader.readuntil(b"\r\n") != b"\r\n":
                    pass
                return data
        if fields.one("Content-Length") is not None:
            return await reader.readexactly(int(fields.all("Content-Length")[0]))
        return await reader.read() if until_close else b""
    except (asyncio.IncompleteReadError, ValueError) as e:
        raise Broken("the body breaks off") from e


# --- The origin


class Origin:
    """Answers each request as its run's step says, and notes it."""

    def __init__(self):
        self.runs = {}

    async def __call__(self, reader, writer):
        try:
            while await self.answer(reader, writer):
                pass
        except (Broken, ConnectionError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass  # The last: the script ends.
        finally:
            writer.close()

    async def answer(self, reader, writer):
        got = await head(reader)
        if got is None:
            return False
        (method, target, _), fields = got[0].split(" ", 2), got[1]
        await body(reader, fields, False)
        if "://" in target:
            target = "/" + target.split("://", 1)[1].partition("/")[2]
        run = self.runs.get(target[1:].split("/")[0].split("?")[0])
        number = int(fields.one("X-Step") or 0)
        if run is None or not 1 <= number <= len(run.case.steps):
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return True
        step = run.case.steps[number - 1]
        run.seen.append((number, method, fields))
        if step.delay:
            await asyncio.sleep(step.delay)
        return not step.cut and await self.say(writer, run, number, step, method, fields)

    async def say(self, writer, run, number, step, method, asked):
        status = step.status
        conditional = {"etag": "If-None-Match", "lm": "If-Modified-Since"}.get(step.want)
        if conditional and asked.one(conditional) is not None:
            status = 304
        for code, more in step.interim:
            lines = "".join(f"{name}: {value}\r\n" for name, value in split(more))
            writer.write(f"HTTP/1.1 {code} Interim\r\n{lines}\r\n".encode())
        data = (step.body if step.body is not None else run.id).encode()
        fields = [(name, self.value(value, run)) for name, value in split(step.say)]
        coding = next((value for name, value in fields if name == "Transfer-Encoding"), None)
        fields = [(name, value) for name, value in fields if (name, value) != ("Transfer-Encoding", "none")]
        told = any(name == "Content-Length" for name, _ in fields)
        if status not in (204, 304) and coding is None and not told:
            fields.append(("Content-Length", str(len(data))))
        fields.append(("X-Step", str(number)))
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
        writer.write(f"HTTP/1.1 {status} Said\r\n{lines}\r\n".encode("latin-1"))
        if method == "HEAD" or status in (204, 304):
            data, coding = b"", coding and "none"
        if step.short:
            data = data[:-3]
        if coding == "chunked":
            trailer = f"{step.trailer}\r\n" if step.trailer else ""
            data = b"%x\r\n%s\r\n" % (len(data), data) + (b"" if step.short else f"0\r\n{trailer}\r\n".encode())
        writer.write(data)
        await writer.drain()
        return not step.short and coding != "none" and asked.one("Connection") != "close"

    @staticmethod
    def value(value, run):
        value = dated(value, run.now)
        return value.replace("BASE", f"http://{run.host}/{run.id}").replace("RUN", run.id)


# --- The client


class Run:
    """One case on one peer."""

    def __init__(self, case, port):
        self.case, self.port = case, port
        self.id = uuid.uuid4().hex
        self.host = f"127.0.0.1:{port}"
        self.seen = []
        self.began = self.now = int(time.time())

    async def go(self):
        """What went wrong; None: nothing."""
        for number, step in enumerate(self.case.steps, 1):
            self.now = int(time.time())
            self.began = self.now if number == 1 else self.began
            asked = [self.ask(number, step) for _ in range(abs(step.clients))]
            try:
                answers = await asyncio.wait_for(asyncio.gather(*asked), PATIENCE)
                wrong = next(filter(None, (self.check(number, step, *answer) for answer in answers)), None)
            except (Broken, ConnectionError, ValueError) as e:
                # An answer that breaks off is as good as none.
                wrong = None if step.broken or step.code == 0 else f"no answer: {e}"
            except (TimeoutError, asyncio.TimeoutError):
                wrong = "no answer in time"
            else:
                if step.broken and not wrong:
                    wrong = "a broken answer came as a whole one"
            wrong = wrong or self.check_origin(number, step)
            if wrong:
                return f"step {number}: {wrong}"
            await asyncio.sleep(step.wait if number < len(self.case.steps) else 0)
        return None

    async def ask(self, number, step):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            slash = "/" if step.path and step.path[0] != "?" else ""
            fields = [("Host", self.host), ("X-Step", str(number)), ("Connection", "close")]
            fields += [(name, dated(value, self.now)) for name, value in split(step.ask)]
            if step.payload:
                fields += [("Content-Length", str(len(step.payload))), ("Content-Type", "text/plain")]
            lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
            writer.write(f"{step.method} /{self.id}{slash}{step.path} HTTP/1.1\r\n{lines}\r\n{step.payload}".encode("latin-1"))
            interim = []
            while True:
                got = await head(reader)
                if got is None:
                    raise Broken("nothing came")
                code = int(got[0].split(" ")[1])
                if code >= 200:
                    break
                interim.append((code, got[1]))
            if step.method == "HEAD" or code in (204, 304):
                return code, got[1], b"", interim
            return code, got[1], await body(reader, got[1], True), interim
        finally:
            writer.close()

    def check(self, number, step, code, fields, data, interim):
        served = int(fields.one("X-Step") or 0)
        if step.want == "hit" and not (0 < served < number or code == 304 and not served):
            return "not from the cache"
        if step.want == "miss" and served != number:
            return "from the cache" if served else f"not the origin's answer, but {code}"
        expected = step.code if step.code is not None else step.status
        if expected and code != expected:
            return f"status {code} for {expected}"
        for name, value in split(step.has):
            there = fields.one(name)
            if there is None or not self.fits(value, there):
                return f"{name} is {there!r}, not {value!r}"
        for name, value in split(step.lacks):
            if fields.one(name) is not None and (not value or fields.one(name) == value):
                return f"{name}: {fields.one(name)} is there"
        for code, more in step.interim:
            if not any(code == came and all(got.one(n) == v for n, v in split(more)) for came, got in interim):
                return f"{code} did not come through"
        whole = expected and step.method != "HEAD" and code not in (204, 304, 416) and step.status not in (204, 304)
        gets = step.gets if step.gets is not None else step.body or self.id if whole and step.want != "hit" and code < 400 else None
        if gets is not None and step.status != 204 and not step.broken and data != gets.encode():
            return f"the body is {data[:60]!r}"
        return None

    def fits(self, expected, value):
        if not expected:
            return True
        if expected[0] in "<>":
            number = int(value.split(",")[0])
            return number > int(expected[1:]) if expected[0] == ">" else number < int(expected[1:])
        if "*" in expected:
            return fnmatch.fnmatchcase(value, expected)
        return value == dated(expected, self.began)

    def check_origin(self, number, step):
        seen = [(method, fields) for at, method, fields in self.seen if at == number]
        if abs(step.clients) > 1 and len(seen) != (1 if step.clients > 0 else -step.clients):
            return f"the origin was asked {len(seen)} times"
        needs = step.sent or step.sent_method or step.want in ("etag", "lm")
        if needs and not seen:
            return "the origin was not asked"
        if not seen:
            return None
        method, fields = seen[0]
        conditional = {"etag": "If-None-Match", "lm": "If-Modified-Since"}.get(step.want)
        if conditional and fields.one(conditional) is None:
            return f"the origin was asked without {conditional}"
        if step.sent_method and method != step.sent_method:
            return f"the origin was asked by {method}"
        for name, value in split(step.sent):
            if fields.one(name) != value:
                return f"the origin saw {name}: {fields.one(name)}"
        for name, value in split(step.unsent):
            if fields.one(name) is not None and (not value or fields.one(name) == value):
                return f"the origin saw {name}: {fields.one(name)}"
        return None


# --- The peers


def find(name):
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def start_trestle(dir, port, to, binary):
    admin = free_port()
    (dir / "trestle.yaml").write_text(f"""
listeners: {{ web: {{ bind: "127.0.0.1:{port}", protocol: http, cache: {{ mode: on }} }} }}
routes: {{ one: {{ rules: [{{ pools: [one] }}] }} }}
pools: {{ one: {{ members: ["127.0.0.1:{to}"] }} }}
""")
    args = [binary, "run", "--bootstrap", "--config", str(dir / "trestle.yaml"), "--data-dir", str(dir / "data"), "--workers", "1",
            "--cluster", "127.0.0.1:0", "--admin", f"127.0.0.1:{admin}", "--cache-memory", "64MiB"]

    def is_ready():
        with urllib.request.urlopen(f"http://127.0.0.1:{admin}/v1/cache", timeout=2) as answer:
            return json.load(answer)["trusted"]

    return args, is_ready


def start_nginx(dir, port, to, binary):
    (dir / "conf").write_text(f"""daemon off; worker_processes 1; pid {dir}/pid; error_log {dir}/error.log;
events {{ worker_connections 4000; }}
http {{ access_log off; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u;
scgi_temp_path {dir}/s; proxy_cache_path {dir}/cache levels=1:2 keys_zone=c:8m max_size=1000m inactive=600m;
upstream one {{ server 127.0.0.1:{to}; keepalive 64; }}
server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://one; proxy_http_version 1.1; proxy_set_header Connection "";
  proxy_set_header Host $http_host; proxy_cache c; proxy_cache_revalidate on; proxy_cache_lock on; }} }} }}
""")
    return [binary, "-p", str(dir), "-c", str(dir / "conf")], None


def start_varnish(dir, port, to, binary):
    (dir / "vcl").write_text(f'vcl 4.1;\nbackend one {{ .host = "127.0.0.1"; .port = "{to}"; }}\n')
    # By default it keeps for two minutes what does not say for how long, serves all for ten seconds longer, and then never
    # asks whether it still holds: little would pass.
    return [binary, "-F", "-f", str(dir / "vcl"), "-a", f"127.0.0.1:{port}", "-s", "malloc,64m", "-n", str(dir / "work"),
            "-p", "default_ttl=0", "-p", "default_grace=0", "-p", "default_keep=60"], None


def start_apache(dir, port, to, binary):
    modules = "/usr/lib/apache2/modules"
    names = ["mpm_event", "authz_core", "proxy", "proxy_http", "cache", "cache_disk", "headers"]
    loads = "\n".join(f"LoadModule {name}_module {modules}/mod_{name}.so" for name in names)
    (dir / "cache").mkdir()
    shutil.chown(dir / "cache", "www-data") if os.geteuid() == 0 else None
    user = "User www-data\nGroup www-data" if os.geteuid() == 0 else ""
    (dir / "conf").write_text(f"""ServerRoot {dir}
ServerName 127.0.0.1
PidFile {dir}/pid
ErrorLog {dir}/error.log
DefaultRuntimeDir {dir}
Listen 127.0.0.1:{port}
{loads}
{user}
ThreadsPerChild 64
MaxRequestWorkers 256
ProxyPass "/" "http://127.0.0.1:{to}/" retry=0
ProxyPreserveHost On
CacheEnable disk /
CacheRoot {dir}/cache
CacheDirLevels 2
CacheDirLength 1
CacheDefaultExpire 0
CacheIgnoreNoLastMod On
CacheStoreExpired On
CacheHeader On
CacheDetailHeader On
""")
    return [binary, "-DFOREGROUND", "-f", str(dir / "conf")], None


class Peer:
    """Starts one, and ends it with all of its processes."""

    START = {"trestle": ("", start_trestle), "nginx": ("nginx", start_nginx), "varnish": ("varnishd", start_varnish),
             "apache": ("apache2", start_apache)}

    def __init__(self, name, dir, to, trestle):
        program, start = self.START[name]
        binary = trestle if name == "trestle" else find(program)
        if not binary or not pathlib.Path(binary).exists():
            raise FileNotFoundError(f"{name}: there is no {binary or program}")
        dir.mkdir()
        dir.chmod(0o755)
        self.name, self.port = name, free_port()
        args, self.is_ready = start(dir, self.port, to, str(binary))
        self.log = (dir / "out").open("w")
        self.process = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True)

    async def ready(self):
        end = time.time() + 30
        while time.time() < end and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                if self.is_ready is None or self.is_ready():
                    return
            except OSError:
                pass
            await asyncio.sleep(0.05)
        sys.exit(f"{self.name} does not start: {pathlib.Path(self.log.name).read_text()[-2000:]}")

    def end(self):
        try:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait(5)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.log.close()


# --- The whole


async def measure(peer, origin, cases):
    """What went wrong with each case; None where nothing did."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(case):
        async with gate:
            run = Run(case, peer.port)
            origin.runs[run.id] = run
            wrong = await run.go()
            del origin.runs[run.id]
            return case.id, wrong

    return dict(await asyncio.gather(*map(one, cases)))


def settled(wrong, cases):
    """With those left out that only pass because something else that they rest on does not."""
    by_id = {case.id: case for case in cases}

    def rests(id):
        return next((need for need in by_id[id].needs if need in by_id and (wrong[need] or rests(need))), None)

    return {id: why or (f"rests on {rests(id)}" if rests(id) else None) for id, why in wrong.items()}


async def run(a, dir):
    origin = Origin()
    server = await asyncio.start_server(origin, "127.0.0.1", 0, limit=1 << 20)
    to = server.sockets[0].getsockname()[1]
    chosen = set(a.case or ())
    wanted = {n for case in CASES if case.id in chosen for n in case.needs} | chosen
    cases = [case for case in CASES if not chosen or case.id in wanted]
    results = {}
    for name in a.peers:
        try:
            peer = Peer(name, dir / name, to, a.trestle)
        except FileNotFoundError as e:
            print(f"left out: {e}", file=sys.stderr)
            continue
        try:
            await peer.ready()
            began = time.time()
            results[name] = settled(await measure(peer, origin, cases), cases)
            print(f"{name}: {len(cases)} cases in {time.time() - began:.0f} s", file=sys.stderr)
        finally:
            peer.end()
    return cases, results


def table(cases, results):
    print(f"{'':10}" + "".join(f"{name:>10}" for name in results))
    counts = {}
    for kind in "required", "optimal":
        ids = [case.id for case in cases if case.kind == kind]
        counts[kind] = {name: sum(wrong[id] is None for id in ids) for name, wrong in results.items()}
        print(f"{kind:10}" + "".join(f"{count:>10}" for count in counts[kind].values()) + f"   of {len(ids)}")
    return counts


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--trestle", default=str(ROOT / "target/release/trestle"))
    ap.add_argument("--peers", type=lambda v: v.split(","), default=list(PEERS), help=f"of {', '.join(PEERS)}")
    ap.add_argument("--case", action="append", help="only this one, and what it rests on")
    ap.add_argument("-v", "--verbose", action="store_true")
    a = ap.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        dir = pathlib.Path(tmp)
        dir.chmod(0o755)  # Peers serve as somebody else.
        cases, results = asyncio.run(run(a, dir))
    if not results:
        sys.exit("nobody to be asked")
    counts = table(cases, results)
    for kind in ("required", "optimal", "check") if a.verbose else ("required", "optimal"):
        for case in (case for case in cases if case.kind == kind):
            of = {name: wrong[case.id] for name, wrong in results.items()}
            if a.verbose:
                marks = " ".join(f"{name}={'yes' if why is None else 'no'}" for name, why in of.items())
                print(f"{kind:9} {case.id} (RFC {case.rfc}): {marks}")
                for name, why in of.items():
                    if why and kind != "check":
                        print(f"    {name}: {why}")
            elif of.get("trestle"):
                print(f"{kind} {case.id} (RFC {case.rfc}): {of['trestle']}")
    ours = {kind: of.get("trestle") for kind, of in counts.items()}
    sys.exit(any(ours[kind] is not None and count > ours[kind] for kind, of in counts.items() for count in of.values()))


if __name__ == "__main__":
    main()
