#!/usr/bin/env python3
"""CPU time per unit of proxied work beside nginx and HAProxy, and memory of idle connections, in one run.

    cargo build --release
    bench/proxy.py [--rows h1,tls,...] [--rounds 5] [--seconds 4] [--idle 10000]

Every product has one worker on the same core, an access log to a file, its counters, and the same
forwarding headers; the backend (an nginx) and the load generator share another core. Rounds are
interleaved, so that a busy neighbour hurts all alike. What is compared is CPU time as the kernel
accounts it (user and system of all of a product's threads), not requests per second: that is the
load generator's limit as much as the proxy's.

Needs nginx, haproxy, wrk, h2load and openssl. Everything listens on loopback and ends with the script.
"""
import argparse, json, os, pathlib, re, resource, shutil, signal, socket, ssl, statistics, subprocess, sys, tempfile, time

# What was started ends with the script, also where somebody ends that.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROXY_CORE, LOAD_CORE = 0, 1
ROWS = {
    "h1": "1 KiB answers, HTTP/1.1, 64 kept connections",
    "tls": "the same over TLS 1.3",
    "handshake": "a full TLS 1.3 handshake (ECDSA P-256) with one request",
    "h2": "1 KiB answers, HTTP/2 over TLS to HTTP/1.1, 16 connections of 16 streams",
    "grpc": "a unary call, HTTP/2 over TLS to HTTP/2, 16 connections of 16 streams",
    "large": "1 MiB answers, HTTP/1.1, 16 kept connections",
    "large-tls": "the same over TLS 1.3",
}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_port(port, what, deadline=20):
    end = time.time() + deadline
    while time.time() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    sys.exit(f"{what} does not answer on port {port}")


def children(pid):
    found = [pid]
    for path in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            found += children(int(child))
    return found


def cpu(pid):
    """Seconds of user and system time of a process and its children; nanoseconds where the kernel has them."""
    total = 0.0
    for p in children(pid):
        for task in pathlib.Path(f"/proc/{p}/task").iterdir():
            try:
                total += int((task / "schedstat").read_text().split()[0]) / 1e9
            except (OSError, ValueError, IndexError):
                pass
    return total


def pss(pid):
    total = 0
    for p in children(pid):
        for line in pathlib.Path(f"/proc/{p}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


class Proc:
    def __init__(self, args, core, **kw):
        self.p = subprocess.Popen(["taskset", "-c", str(core)] + args, start_new_session=True,
                                  stdin=subprocess.DEVNULL, **kw)

    def __enter__(self):
        return self.p

    def __exit__(self, *_):
        try:
            os.killpg(self.p.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.p.wait()


def program(name):
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    return found or sys.exit(f"{name} is not installed")


def start_nginx(dir, name, body, core, log="off"):
    d = dir / name
    d.mkdir()
    (d / "conf").write_text(f"""daemon off; worker_processes 1; pid {d}/pid; error_log {d}/error.log;
events {{ worker_connections 19000; }}
http {{ access_log {log}; keepalive_requests 1000000000; keepalive_timeout 3600; sendfile on;
client_body_temp_path {d}/b; proxy_temp_path {d}/p; fastcgi_temp_path {d}/f; uwsgi_temp_path {d}/u; scgi_temp_path {d}/s;
{body} }}
""")
    return Proc([program("nginx"), "-p", str(d), "-c", str(d / "conf")], core, stderr=subprocess.DEVNULL)


def backend(dir, h1, h2c):
    (dir / "www").mkdir()
    (dir / "www" / "m").write_bytes(os.urandom(1 << 20))
    body = "x" * 1024
    return start_nginx(dir, "backend", f"""
upstream self {{ server 127.0.0.1:{h1}; keepalive 64; keepalive_requests 1000000000; }}
server {{ listen 127.0.0.1:{h1}; location = /k {{ return 200 "{body}"; }} location / {{ root {dir}/www; }}
  location = /g {{ default_type application/grpc; return 200 "{body}"; }} }}
# What answers without reading the request resets its stream: so the call is passed on first.
server {{ listen 127.0.0.1:{h2c} http2; location /s.S/M {{ proxy_pass http://self/g; proxy_http_version 1.1; proxy_set_header Connection "";
  add_trailer grpc-status 0; }} }}
""", LOAD_CORE)


def nginx(dir, ports, h1, h2c, pem, key):
    headers = ('{d}_set_header X-Forwarded-For $remote_addr; {d}_set_header X-Forwarded-Proto $scheme; '
               '{d}_set_header X-Forwarded-Host $host; {d}_set_header X-Forwarded-Port $server_port; '
               '{d}_set_header X-Request-Id $request_id; {d}_set_header Via "1.1 nginx"; ')
    proxied = f'location / {{ proxy_pass http://one; proxy_http_version 1.1; proxy_set_header Connection ""; {headers.format(d="proxy")} }}'
    called = f'location / {{ grpc_pass grpc://two; {headers.format(d="grpc")} }}'
    tls = f"ssl_certificate {pem}; ssl_certificate_key {key}; ssl_protocols TLSv1.2 TLSv1.3; ssl_session_tickets on;"
    return start_nginx(dir, "nginx", f"""
upstream one {{ server 127.0.0.1:{h1}; keepalive 256; keepalive_requests 1000000000; }}
upstream two {{ server 127.0.0.1:{h2c}; keepalive 256; keepalive_requests 1000000000; }}
server {{ listen 127.0.0.1:{ports["plain"]} backlog=4096; {proxied} location = /stub {{ stub_status; }} }}
server {{ listen 127.0.0.1:{ports["tls"]} ssl http2 backlog=4096; {tls} {proxied} }}
server {{ listen 127.0.0.1:{ports["grpc"]} ssl http2 backlog=4096; {tls} {called} }}
""", PROXY_CORE, log=f"{dir}/nginx.log")


def haproxy(dir, ports, h1, h2c, pem, key):
    both = dir / "both.pem"
    both.write_bytes(pem.read_bytes() + key.read_bytes())
    (dir / "haproxy.cfg").write_text(f"""
global
  nbthread 1
  no strict-limits
  maxconn 30000
  log stdout format raw local0
  tune.ssl.default-dh-param 2048
defaults all
  mode http
  log global
  option httplog
  option forwardfor
  timeout client 3600s
  unique-id-format %[uuid()]
  unique-id-header X-Request-Id
  http-request set-header X-Forwarded-Proto %[ssl_fc,iif(https,http)]
  http-request set-header X-Forwarded-Host %[req.hdr(host)]
  http-request set-header X-Forwarded-Port %[dst_port]
  http-request set-header Via "1.1 haproxy"
defaults backs
  mode http
  timeout connect 5s
  timeout server 60s
  http-reuse always
frontend plain from all
  bind 127.0.0.1:{ports["plain"]} backlog 4096
  default_backend one
frontend tls from all
  bind 127.0.0.1:{ports["tls"]} ssl crt {both} alpn h2,http/1.1 backlog 4096
  default_backend one
frontend grpc from all
  bind 127.0.0.1:{ports["grpc"]} ssl crt {both} alpn h2 backlog 4096
  default_backend two
backend one from backs
  server s 127.0.0.1:{h1}
backend two from backs
  server s 127.0.0.1:{h2c} proto h2
""")
    return Proc([program("haproxy"), "-db", "-f", str(dir / "haproxy.cfg")], PROXY_CORE,
                stdout=(dir / "haproxy.log").open("w"), stderr=subprocess.DEVNULL)


def trestle(dir, ports, h1, h2c, pem, key, binary):
    (dir / "trestle.yaml").write_text(f"""
listeners:
  plain: {{ bind: "127.0.0.1:{ports["plain"]}", protocol: http, http: {{ idle: 1h }} }}
  tls: {{ bind: "127.0.0.1:{ports["tls"]}", protocol: https, tls: {{ certificates: [c] }}, http: {{ idle: 1h }} }}
  grpc: {{ bind: "127.0.0.1:{ports["grpc"]}", protocol: https, tls: {{ certificates: [c] }} }}
routes:
  one: {{ listeners: [plain, tls], rules: [{{ pools: [one] }}] }}
  two: {{ listeners: [grpc], rules: [{{ pools: [two] }}] }}
pools:
  one: {{ members: ["127.0.0.1:{h1}"], breaker: {{ connections: 0, pending: 0 }} }}
  two: {{ members: ["127.0.0.1:{h2c}"], protocol: h2c, breaker: {{ connections: 0, pending: 0 }} }}
certificates: {{ c: {{ chain_file: {pem}, key_file: {key} }} }}
access_log: {{ format: combined, to: "file:{dir}/trestle.log" }}
""")
    return Proc([binary, "run", "--bootstrap", "--config", str(dir / "trestle.yaml"), "--data-dir", str(dir / "data"),
                 "--workers", "1", "--cluster", "127.0.0.1:0", "--admin", "127.0.0.1:0"], PROXY_CORE,
                stdout=subprocess.DEVNULL, stderr=(dir / "trestle.err").open("w"))


def run(args):
    return subprocess.run(["taskset", "-c", str(LOAD_CORE)] + args, capture_output=True, text=True, check=True).stdout


def wrk(url, seconds, connections):
    out = run(["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", url])
    if "Non-2xx" in out or "Socket errors" in out:
        sys.exit(f"the load saw errors: {out}")
    return int(re.search(r"(\d+) requests in", out).group(1))


def h2load(args, url, requests):
    out = run(["h2load"] + args + ["-n", str(requests), url])
    done = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored", out)
    if int(done.group(1)) != requests:
        sys.exit(f"the load saw errors: {out}")
    return requests


def load(row, ports, seconds, dir):
    """Puts the row's work upon a product; returns how many units that were."""
    plain, tls = f"http://127.0.0.1:{ports['plain']}", f"https://127.0.0.1:{ports['tls']}"
    if row == "h1":
        return wrk(f"{plain}/k", seconds, 64)
    if row == "tls":
        return wrk(f"{tls}/k", seconds, 64)
    if row == "large":
        return wrk(f"{plain}/m", seconds, 16)
    if row == "large-tls":
        return wrk(f"{tls}/m", seconds, 16)
    if row == "handshake":
        return sum(h2load(["--h1", "-c", "100"], f"{tls}/k", 100) for _ in range(6 * seconds))
    if row == "h2":
        return h2load(["-c", "16", "-m", "16"], f"{tls}/k", 10000 * seconds)
    call = dir / "call"
    call.write_bytes(b"\0\0\0\0\5hello")
    headers = ["-H", "content-type: application/grpc", "-H", "te: trailers", "-d", str(call)]
    return h2load(["-c", "16", "-m", "16"] + headers, f"https://127.0.0.1:{ports['grpc']}/s.S/M", 8000 * seconds)


def idle_memory(port, pid, count, rest, tls):
    """Bytes that a kept connection costs, after one request on each and `rest` seconds without one."""
    before = pss(pid)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    held = []
    for _ in range(count):
        s = socket.create_connection(("127.0.0.1", port))
        s = context.wrap_socket(s) if tls else s
        s.sendall(b"GET /k HTTP/1.1\r\nHost: x\r\n\r\n")
        got = b""
        while len(got) < 1024:
            more = s.recv(65536)
            if not more:
                sys.exit("a connection was closed")
            got += more
        held.append(s)
    time.sleep(rest)
    cost = (pss(pid) - before) / count
    for s in held:
        s.close()
    return cost


def at_rest(pid, seconds=2):
    """Milliseconds of CPU time a second that a proxy takes without traffic."""
    before = cpu(pid)
    time.sleep(seconds)
    return (cpu(pid) - before) / seconds * 1e3


def measure(a, dir, products):
    rows = {}
    for row in a.rows:
        micros = {name: [] for name in products}
        for turn in range(-1, a.rounds):
            for name, (ports, pid) in products.items():
                before = cpu(pid)
                units = load(row, ports, 1 if turn < 0 else a.seconds, dir)
                used = (cpu(pid) - before) / units * 1e6
                if turn >= 0:
                    micros[name].append(used)
                    print(f"{row:10} round {turn + 1} {name:8} {used:8.2f} us", file=sys.stderr)
        ratio = [t / min(n, h) for t, n, h in zip(micros["trestle"], micros["nginx"], micros["haproxy"])]
        rows[row] = {"what": ROWS[row], "cpu_us": {n: round(statistics.median(v), 2) for n, v in micros.items()},
                     "ratio_to_the_better": round(statistics.median(ratio), 3), "ratios": [round(r, 3) for r in sorted(ratio)]}
    return rows


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--rows", type=lambda v: v.split(","), default=list(ROWS), help=f"of {', '.join(ROWS)}")
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--seconds", type=int, default=4)
    ap.add_argument("--idle", type=int, default=10000, help="idle connections; 0: not measured")
    ap.add_argument("--rest", type=float, default=4, help="seconds that they have been idle")
    ap.add_argument("--trestle", default=str(ROOT / "target/release/trestle"))
    a = ap.parse_args()
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if files < a.idle + 1000:
        sys.exit(f"{a.idle} idle connections need a hard limit of {a.idle + 1000} open files")
    with tempfile.TemporaryDirectory() as tmp:
        dir = pathlib.Path(tmp)
        dir.chmod(0o755)  # nginx serves as nobody
        pem, key = dir / "c.pem", dir / "c.key"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "7",
                        "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(pem)],
                       check=True, capture_output=True)
        h1, h2c = free_port(), free_port()
        ports = {name: {kind: free_port() for kind in ("plain", "tls", "grpc")} for name in ("nginx", "haproxy", "trestle")}
        with backend(dir, h1, h2c), \
                nginx(dir, ports["nginx"], h1, h2c, pem, key) as of_nginx, \
                haproxy(dir, ports["haproxy"], h1, h2c, pem, key) as of_haproxy, \
                trestle(dir, ports["trestle"], h1, h2c, pem, key, a.trestle) as of_trestle:
            pids = {"nginx": of_nginx.pid, "haproxy": of_haproxy.pid, "trestle": of_trestle.pid}
            for name, kinds in ports.items():
                for kind, port in kinds.items():
                    wait_port(port, f"{name} ({kind})")
            products = {name: (ports[name], pid) for name, pid in pids.items()}
            result = {"rows": measure(a, dir, products)}
            result["cpu_ms_a_second_at_rest"] = {n: round(at_rest(p), 2) for n, p in pids.items()}
            if a.idle:
                for kind in "plain", "tls":
                    cost = {n: round(idle_memory(ports[n][kind], p, a.idle, a.rest, kind == "tls")) for n, p in pids.items()}
                    result[f"idle_{kind}_connection_bytes"] = cost
            print(json.dumps(result | {"rounds": a.rounds, "seconds": a.seconds, "idle": a.idle}, indent=1))


if __name__ == "__main__":
    main()
