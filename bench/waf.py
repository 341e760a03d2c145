#!/usr/bin/env python3
"""The WAF beside nginx with ModSecurity: what each refuses of the corpus, and what a request costs.

    cargo build --release
    TRESTLE_WAF_CORPUS=/tmp/waf-corpus cargo test -p trestle-dataplane the_corpus_is_written_down -- --ignored
    bench/waf.py /tmp/waf-corpus [--rounds 5]

All are asked the same requests: the attacks in a query each, and the innocent ones. Those with rule files have the
Core Rule Set as Debian's modsecurity-crs brings it, at paranoia level 1, and the fields that an editor's form exempts
are exempted at both. Told is how many each refuses, how often the two with the same rules agree, and the CPU time of
the innocent requests that nobody refuses, on kept connections, less that of the same program without a WAF.

Needs nginx, libnginx-mod-http-modsecurity and modsecurity-crs. Everything listens on loopback and ends with the script.
"""
import argparse, collections, os, pathlib, socket, statistics, sys, tempfile

from proxy import LOAD_CORE, PROXY_CORE, ROOT, Proc, cpu, free_port, program, wait_port

MODULE = pathlib.Path("/usr/lib/nginx/modules/ngx_http_modsecurity_module.so")
CRS = pathlib.Path("/usr/share/modsecurity-crs/owasp-crs.load")
# Beyond the rules' own setup: they want requests to have only types of bodies that they read.
SETUP = ("SecAction \"id:1,phase:1,nolog,pass,setvar:'tx.allowed_request_content_type="
         "|application/x-www-form-urlencoded| |multipart/form-data| |text/xml| |application/xml| "
         "|application/soap+xml| |application/json| |text/plain|'\"\n")
# What ModSecurity's own recommended setup says of bodies.
BODIES = """SecRuleEngine On
SecRequestBodyAccess On
SecRule REQUEST_HEADERS:Content-Type "(?:application(?:/soap\\+|/)|text/)xml" "id:200000,phase:1,t:none,t:lowercase,pass,nolog,ctl:requestBodyProcessor=XML"
SecRule REQUEST_HEADERS:Content-Type "application/json" "id:200001,phase:1,t:none,t:lowercase,pass,nolog,ctl:requestBodyProcessor=JSON"
"""
EXEMPTED = ["exempt-body", "exempt-paste"]


class Client:
    """A connection that is kept, and made anew where the other side has ended it."""

    def __init__(self, port):
        self.port, self.sock, self.buffer = port, None, b""

    def status(self, request):
        for _ in range(2):
            try:
                if self.sock is None:
                    self.sock, self.buffer = socket.create_connection(("127.0.0.1", self.port), 10), b""
                self.sock.sendall(request)
                return self.answer()
            except (ConnectionError, EOFError):
                self.sock = None
        sys.exit("a connection was closed without an answer, twice")

    def more(self):
        data = self.sock.recv(65536)
        if not data:
            raise EOFError
        self.buffer += data

    def answer(self):
        while b"\r\n\r\n" not in self.buffer:
            self.more()
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        lines = head.lower().split(b"\r\n")
        length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
        while len(self.buffer) < length:
            self.more()
        self.buffer = self.buffer[length:]
        if b"connection: close" in lines:
            self.sock = None
        return int(head.split(b" ", 2)[1])


def corpus(path):
    """Kinds, texts and bytes of the requests."""
    for line in pathlib.Path(path).read_text().splitlines():
        what, raw = line.rsplit("\t", 1)
        kind = what[1:].split(":", 1)[0]
        yield (kind if kind in ("sqli", "xss") else "innocent"), what, bytes.fromhex(raw)


def nginx_conf(dir, ports, origin):
    # libmodsecurity knows no IncludeOptional; the files that it stands before are there.
    loads = CRS.read_text().replace("IncludeOptional", "Include")
    exempted = "".join(f'SecRuleUpdateTargetByTag "OWASP_CRS" "!ARGS:{name}"\n' for name in EXEMPTED)
    (dir / "modsecurity.conf").write_text(BODIES + SETUP + loads + exempted)
    paths = " ".join(f"{name}_temp_path {dir}/{name};" for name in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"])
    server = "server {{ listen 127.0.0.1:{port}; {waf} location / {{ proxy_pass http://origin; " \
             'proxy_http_version 1.1; proxy_set_header Connection ""; }} }}'
    on = f"modsecurity on; modsecurity_rules_file {dir}/modsecurity.conf;"
    (dir / "nginx.conf").write_text(f"""load_module {MODULE};
daemon off; worker_processes 1; pid {dir}/pid; error_log {dir}/error.log crit; events {{ worker_connections 1000; }}
http {{ access_log off; keepalive_requests 1000000000; {paths}
upstream origin {{ server 127.0.0.1:{origin}; keepalive 16; keepalive_requests 1000000000; }}
{server.format(port=ports["nginx, without"], waf="")}
{server.format(port=ports["nginx, ModSecurity, CRS"], waf=on)}
}}
""")
    return dir / "nginx.conf"


def origin_conf(dir, port):
    (dir / "origin.conf").write_text(f"""daemon off; worker_processes 1; pid {dir}/origin.pid; error_log {dir}/origin.log;
events {{ worker_connections 1000; }}
http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path {dir}/ob; proxy_temp_path {dir}/op;
fastcgi_temp_path {dir}/of; uwsgi_temp_path {dir}/ou; scgi_temp_path {dir}/os;
server {{ listen 127.0.0.1:{port}; location / {{ return 200 "ok"; }} }} }}
""")
    return dir / "origin.conf"


def trestle_yaml(dir, ports, origin):
    (dir / "setup.conf").write_text(SETUP)
    wafs = {"Trestle, without": None, "Trestle, built-in": "[builtin]", "Trestle, CRS": f"[setup.conf, {CRS}]",
            "Trestle, built-in and CRS": f"[builtin, setup.conf, {CRS}]"}
    excepted = ", ".join(f"{{ field: {name} }}" for name in EXEMPTED)
    lines = ["listeners:"]
    for number, (name, rules) in enumerate(wafs.items()):
        waf = f", waf: {{ mode: block, rules: {rules}, except: [{excepted}] }}" if rules else ""
        lines.append(f'  w{number}: {{ bind: "127.0.0.1:{ports[name]}", protocol: http, pool: app{waf} }}')
    lines += [f'pools: {{ app: {{ members: ["127.0.0.1:{origin}"] }} }}', 'access_log: { format: "off" }']
    (dir / "config.yaml").write_text("\n".join(lines) + "\n")
    return dir / "config.yaml"


def verdicts(requests, ports):
    """By program, whether it refused each request."""
    found = {}
    for name, port in ports.items():
        client = Client(port)
        answers = [client.status(raw) for _, _, raw in requests]
        strange = collections.Counter(answers) - collections.Counter({200: len(answers), 403: len(answers)})
        if strange:
            print(f"{name}: other answers than 200 and 403: {dict(strange)}")
        found[name] = [answer == 403 for answer in answers]
    return found


def cost(requests, ports, pids, rounds):
    """By program, microseconds of CPU time a request."""
    micros = {name: [] for name in ports}
    for turn in range(-1, rounds):
        for name, port in ports.items():
            client, pid = Client(port), pids[name]
            before = cpu(pid)
            for raw in requests:
                client.status(raw)
            if turn >= 0:
                micros[name].append((cpu(pid) - before) / len(requests) * 1e6)
    return {name: statistics.median(all) for name, all in micros.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    nginx = program("nginx")
    for path in [MODULE, CRS]:
        path.exists() or sys.exit(f"{path} is not here")
    os.sched_setaffinity(0, {LOAD_CORE})
    names = ["nginx, without", "nginx, ModSecurity, CRS", "Trestle, without", "Trestle, built-in", "Trestle, CRS",
             "Trestle, built-in and CRS"]
    requests = list(corpus(args.corpus))
    with tempfile.TemporaryDirectory() as name:
        dir = pathlib.Path(name)
        dir.chmod(0o755)
        ports, origin = {name: free_port() for name in names}, free_port()
        conf, config = nginx_conf(dir, ports, origin), trestle_yaml(dir, ports, origin)
        node = [str(ROOT / "target/release/trestle"), "run", "--bootstrap", "--workers", "1", "--data-dir",
                str(dir / "node"), "--cluster", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--config", str(config)]
        log = open(dir / "node.log", "w")
        with Proc([nginx, "-c", str(origin_conf(dir, origin))], LOAD_CORE), \
             Proc([nginx, "-c", str(conf)], PROXY_CORE) as peer, Proc(node, PROXY_CORE, stderr=log) as trestle:
            for port in [origin, *ports.values()]:
                wait_port(port, "a program")
            pids = {name: (peer if name.startswith("nginx") else trestle).pid for name in names}
            found = verdicts(requests, {name: ports[name] for name in names if "without" not in name})
            kinds = collections.Counter(kind for kind, _, _ in requests)
            print(f"{'refused of':28}" + "".join(f"{f'{kind} ({count})':>18}" for kind, count in kinds.items()))
            for name, refused in found.items():
                counts = collections.Counter(kind for (kind, _, _), no in zip(requests, refused) if no)
                print(f"{name:28}" + "".join(f"{counts[kind]:>18}" for kind in kinds))
            pairs = zip(requests, found["nginx, ModSecurity, CRS"], found["Trestle, CRS"])
            differ = [(what, theirs) for (_, what, _), theirs, ours in pairs if theirs != ours]
            print(f"with the same rules, {len(differ)} of {len(requests)} are judged differently:")
            for what, theirs in differ:
                print(f"  {'only ModSecurity' if theirs else 'only Trestle'} refuses {what[:140]}")
            honest = [raw for number, (kind, _, raw) in enumerate(requests)
                      if kind == "innocent" and not any(refused[number] for refused in found.values())]
            micros = cost(honest, ports, pids, args.rounds)
            print(f"CPU time of a request, of {len(honest)} that nobody refuses, and what of it is the WAF's, in us:")
            for name, all in micros.items():
                print(f"{name:28}{all:>10.1f}{all - micros[name.split(',')[0] + ', without']:>10.1f}")


if __name__ == "__main__":
    main()
