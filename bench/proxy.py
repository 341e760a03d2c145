#!/usr/bin/env python3
"""CPU time per proxied request beside nginx, and memory of an idle connection, in one run.

Both proxies get one worker on the same core and the same backend (an nginx on another core, shared
with the load generator). Rounds are interleaved, so that a busy neighbour hurts both alike. What
is compared is CPU time per request as the kernel accounts it (user and system of the proxy's
processes), not requests per second: that is the load generator's limit as much as the proxy's.

    cargo build --release
    bench/proxy.py [--rounds 5] [--seconds 4] [--connections 64] [--idle 1000]

Needs nginx and wrk. Everything listens on loopback and ends with the script.
"""
import argparse, json, os, pathlib, shutil, signal, socket, statistics, subprocess, sys, tempfile, time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TICK = os.sysconf("SC_CLK_TCK")


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


def rss(pid):
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


def nginx_conf(dir, port, body):
    return f"""daemon off; worker_processes 1; pid {dir}/pid; error_log {dir}/error.log;
events {{ worker_connections 8192; }}
http {{ access_log off; keepalive_requests 1000000000; keepalive_timeout 3600;
client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
{body} }}
"""


def start_nginx(dir, name, port, body, core):
    d = dir / name
    d.mkdir()
    (d / "conf").write_text(nginx_conf(d, port, body))
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    return Proc([nginx, "-p", str(d), "-c", str(d / "conf")], core, stderr=subprocess.DEVNULL)


def wrk(port, seconds, connections, core):
    out = subprocess.run(["taskset", "-c", str(core), "wrk", "-t1", f"-c{connections}", f"-d{seconds}s",
                          f"http://127.0.0.1:{port}/k"], capture_output=True, text=True, check=True).stdout
    for line in out.splitlines():
        if "requests in" in line:
            requests = int(line.split()[0])
        if "Non-2xx" in line or "Socket errors" in line:
            sys.exit(f"the load saw errors: {line}")
    return requests


def at_rest(pid, seconds=2):
    """Milliseconds of CPU time a second that a proxy takes without traffic."""
    before = cpu(pid)
    time.sleep(seconds)
    return (cpu(pid) - before) / seconds * 1e3


def idle_memory(port, pid, count, rest):
    """Bytes that a kept connection costs, after one request on each and `rest` seconds without one."""
    before = rss(pid)
    held = []
    for _ in range(count):
        s = socket.create_connection(("127.0.0.1", port))
        s.sendall(b"GET /k HTTP/1.1\r\nHost: x\r\n\r\n")
        got = b""
        while len(got) < 1024:
            got += s.recv(65536)
        held.append(s)
    time.sleep(rest)
    cost = (rss(pid) - before) / count
    for s in held:
        s.close()
    return cost


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--seconds", type=int, default=4)
    ap.add_argument("--connections", type=int, default=64)
    ap.add_argument("--idle", type=int, default=1000)
    ap.add_argument("--rest", type=float, default=4, help="seconds that the kept connections have been idle")
    ap.add_argument("--trestle", default=str(ROOT / "target/release/trestle"))
    a = ap.parse_args()
    proxy_core, load_core = 0, 1
    with tempfile.TemporaryDirectory() as tmp:
        dir = pathlib.Path(tmp)
        backend, nginx_port, ours = free_port(), free_port(), free_port()
        payload = "x" * 1024
        config = dir / "trestle.yaml"
        config.write_text(f"""
listeners: {{ web: {{ bind: "127.0.0.1:{ours}", protocol: http }} }}
routes: {{ all: {{ rules: [{{ pools: [p] }}] }} }}
pools: {{ p: {{ members: ["127.0.0.1:{backend}"] }} }}
access_log: {{ format: "off" }}
""")
        upstream = f"upstream u {{ server 127.0.0.1:{backend}; keepalive 128; keepalive_requests 1000000000; }}"
        proxying = (f"{upstream} server {{ listen 127.0.0.1:{nginx_port}; location / {{ proxy_pass http://u; proxy_http_version 1.1; "
                    'proxy_set_header Connection ""; proxy_set_header X-Forwarded-For $remote_addr; '
                    "proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Forwarded-Host $host; "
                    "proxy_set_header X-Forwarded-Port $server_port; proxy_set_header X-Request-Id $request_id; proxy_set_header Via trestle; } }")
        answering = f'server {{ listen 127.0.0.1:{backend}; location / {{ return 200 "{payload}"; }} }}'
        with start_nginx(dir, "backend", backend, answering, load_core), \
                start_nginx(dir, "proxy", nginx_port, proxying, proxy_core) as nginx, \
                Proc([a.trestle, "run", "--bootstrap", "--config", str(config), "--data-dir", str(dir / "data"), "--workers", "1",
                      "--cluster", "127.0.0.1:0", "--admin", "127.0.0.1:0"], proxy_core,
                     stdout=subprocess.DEVNULL, stderr=(dir / "trestle.log").open("w")) as trestle:
            for port, what in (backend, "backend"), (nginx_port, "nginx"), (ours, "trestle"):
                wait_port(port, what)
            targets = {"nginx": (nginx_port, nginx.pid), "trestle": (ours, trestle.pid)}
            for port, _ in targets.values():
                wrk(port, 1, a.connections, load_core)
            micros = {name: [] for name in targets}
            for turn in range(a.rounds):
                for name, (port, pid) in targets.items():
                    before = cpu(pid)
                    start = time.time()
                    requests = wrk(port, a.seconds, a.connections, load_core)
                    used = (cpu(pid) - before) / requests * 1e6
                    micros[name].append(used)
                    print(f"round {turn + 1} {name:8} {used:6.2f} us/request {requests / (time.time() - start):8.0f} requests/s", file=sys.stderr)
            ratios = [t / n for t, n in zip(micros["trestle"], micros["nginx"])]
            rest = {name: at_rest(pid) for name, (_, pid) in targets.items()}
            idle = {name: idle_memory(port, pid, a.idle, a.rest) for name, (port, pid) in targets.items()}
            print(json.dumps({
                "cpu_us_per_request": {n: round(statistics.median(v), 2) for n, v in micros.items()},
                "ratio_median": round(statistics.median(ratios), 3),
                "ratios": [round(r, 3) for r in ratios],
                "cpu_ms_a_second_at_rest": {n: round(v, 2) for n, v in rest.items()},
                "idle_connection_bytes": {n: round(v) for n, v in idle.items()},
                "connections": a.connections, "rounds": a.rounds, "seconds": a.seconds,
            }))


main()
