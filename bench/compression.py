#!/usr/bin/env python3
"""What compression costs beside nginx's gzip at the same level, and what small requests wait for meanwhile, in one run.

    cargo build --release
    bench/compression.py [--rounds 3] [--seconds 3] [--long 10] [--trestle FILE]

As bench/proxy.py: one worker each on one core, the load and the origin on the other, rounds interleaved, CPU time as the
kernel accounts it. The text is this repository's documentation, over and over with numbers between; nothing is cached.
nginx knows gzip alone; Trestle's brotli and zstd stand beside it.

`wait`: small requests, one every 5 ms, while four clients, processes of their own, fetch `--long` MiB each again and again,
at 40 MB/s at most: without compression and with it. Trestle's own threads for long bodies share the proxy's one core with
its worker. Where a proxy does not keep up and small requests queue, it ends after three times its time, and says how many
were not made.

Needs nginx.
"""
import argparse, http.client, json, multiprocessing, os, pathlib, statistics, sys, tempfile, time

from proxy import LOAD_CORE, PROXY_CORE, ROOT, Proc, cpu, free_port, start_nginx, wait_port

import subprocess

LEVEL = 5  # Of gzip, as Trestle has it.
EVERY = 0.005
PACE = 40e6  # Bytes a second for each client of long bodies.
CASES = [("nginx", "gzip"), ("trestle", "gzip"), ("trestle", "br"), ("trestle", "zstd")]


def text(size):
    docs = b"".join(path.read_bytes() for path in sorted((ROOT / "docs").glob("*.md")))
    lines, out, at, number = docs.splitlines(keepends=True), [], 0, 0
    while at < size:
        line = lines[number % len(lines)] + b"%d\n" % (number * 2654435761 % 1000003)
        out.append(line)
        at, number = at + len(line), number + 1
    return b"".join(out)[:size]


def origin(dir, port, long):
    (dir / "www").mkdir()
    for name, size in (("small", 1 << 10), ("page", 50 << 10), ("long", long << 20)):
        (dir / "www" / f"{name}.txt").write_bytes(text(size))
    return start_nginx(dir, "origin", f"types {{ text/plain txt; }}\nserver {{ listen 127.0.0.1:{port}; root {dir}/www; }}", LOAD_CORE)


def nginx(dir, port, to):
    return start_nginx(dir, "nginx", f"""
upstream one {{ server 127.0.0.1:{to}; keepalive 64; }}
server {{ listen 127.0.0.1:{port}; gzip on; gzip_comp_level {LEVEL}; gzip_types text/plain; gzip_min_length 1024; gzip_proxied any;
  location / {{ proxy_pass http://one; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Accept-Encoding ""; }} }}
""", PROXY_CORE)


def trestle(dir, port, to, binary):
    (dir / "trestle.yaml").write_text(f"""
listeners:
  web: {{ bind: "127.0.0.1:{port}", protocol: http, compression: {{ mode: on }}, http: {{ idle: 1h }} }}
routes: {{ one: {{ rules: [{{ pools: [one], request_headers: {{ remove: [accept-encoding] }} }}] }} }}
pools: {{ one: {{ members: ["127.0.0.1:{to}"] }} }}
access_log: {{ format: off }}
""")
    return Proc([binary, "run", "--bootstrap", "--config", str(dir / "trestle.yaml"), "--data-dir", str(dir / "data"),
                 "--workers", "1", "--cluster", "127.0.0.1:0", "--admin", "127.0.0.1:0"], PROXY_CORE,
                stdout=subprocess.DEVNULL, stderr=(dir / "trestle.err").open("w"))


class Client:
    def __init__(self, port):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def get(self, path, coding=None):
        """Bytes of the body as they came."""
        self.connection.request("GET", path, headers={"Accept-Encoding": coding} if coding else {})
        answer = self.connection.getresponse()
        if answer.status != 200 or answer.getheader("Content-Encoding") != coding:
            sys.exit(f"{path}: {answer.status} {answer.getheader('Content-Encoding')} instead of {coding}")
        size = 0
        while part := answer.read(1 << 16):
            size += len(part)
        return size


def throughput(port, pid, path, size, coding, seconds):
    client, end, count = Client(port), time.time() + seconds, 0
    before = cpu(pid)
    while time.time() < end:
        coded = client.get(path, coding)
        count += 1
    return {"mib_per_cpu_s": size * count / 2**20 / (cpu(pid) - before), "ratio": size / coded}


def fetch_long(port, coding):
    """Until somebody ends the process."""
    client = Client(port)
    while True:
        due = time.perf_counter() + client.get("/long.txt", coding) / PACE
        time.sleep(max(0, due - time.perf_counter()))


def waits(port, coding, seconds):
    """Milliseconds of small requests, one every 5 ms from when it was due."""
    loads = [multiprocessing.Process(target=fetch_long, args=(port, coding), daemon=True) for _ in range(4)]
    for load in loads:
        load.start()
    try:
        took, client, begin = [], Client(port), time.perf_counter() + 0.2
        for turn in range(int(seconds / EVERY)):
            due = begin + turn * EVERY
            time.sleep(max(0, due - time.perf_counter()))
            client.get("/small.txt", coding)
            took.append((time.perf_counter() - due) * 1e3)
            if time.perf_counter() > begin + 3 * seconds:
                break
        if not all(load.is_alive() for load in loads):
            sys.exit("a client of long bodies has failed: the figures would say nothing")
    finally:
        for load in loads:
            load.terminate()
            load.join()
    took.sort()
    return {"p50_ms": took[len(took) // 2], "p99_ms": took[len(took) * 99 // 100], "max_ms": took[-1], "not_made": int(seconds / EVERY) - len(took)}


def medians(results):
    return {key: round(statistics.median(result[key] for result in results), 2) for key in results[0]}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--seconds", type=int, default=3)
    ap.add_argument("--long", type=int, default=10, help="MiB of a long body")
    ap.add_argument("--trestle", default=str(ROOT / "target/release/trestle"))
    a = ap.parse_args()
    os.sched_setaffinity(0, {LOAD_CORE})
    with tempfile.TemporaryDirectory() as tmp:
        dir = pathlib.Path(tmp)
        dir.chmod(0o755)  # nginx serves as somebody else
        to, ports = free_port(), {name: free_port() for name in ("trestle", "nginx")}
        with origin(dir, to, a.long), nginx(dir, ports["nginx"], to) as of_nginx, trestle(dir, ports["trestle"], to, a.trestle) as of_trestle:
            pids = {"trestle": of_trestle.pid, "nginx": of_nginx.pid}
            wait_port(to, "the origin")
            for name, port in ports.items():
                wait_port(port, name)
            bodies = {"page": ("/page.txt", 50 << 10), "long": ("/long.txt", a.long << 20)}
            found = {}
            for turn in range(a.rounds):
                for name, coding in CASES:
                    for body, (path, size) in bodies.items():
                        got = throughput(ports[name], pids[name], path, size, coding, a.seconds)
                        found.setdefault(f"{name} {coding} {body}", []).append(got)
                        print(f"round {turn + 1} {name:8} {coding:5} {body:5} {got['mib_per_cpu_s']:7.1f} MiB/s {got['ratio']:.2f}", file=sys.stderr)
                for name, coding in [("nginx", None), ("trestle", None)] + CASES:
                    got = waits(ports[name], coding, a.seconds)
                    found.setdefault(f"{name} {coding or 'plain'} wait", []).append(got)
                    print(f"round {turn + 1} {name:8} {coding or 'plain':5} wait  p99 {got['p99_ms']:.2f} ms, {got['not_made']} not made", file=sys.stderr)
            print(json.dumps({key: medians(results) for key, results in found.items()} | {"rounds": a.rounds, "seconds": a.seconds}, indent=1))


main()
