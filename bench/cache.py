#!/usr/bin/env python3
"""CPU time of a hit beside nginx (proxy_cache) and Varnish, what the cache's memory is, coalescing and purges, in one run.

    cargo build --release
    bench/cache.py [--rows small,large] [--rounds 5] [--seconds 3] [--fill 100] [--clients 1000] [--purges 50]

As bench/proxy.py: one worker each on one core, the load and the origin on the other, rounds interleaved, CPU time as
the kernel accounts it, an access log to a file for Trestle and nginx (Varnish writes its own to memory). nginx keeps
its cache in a folder that is in memory already (the page cache).

`fill`: so many MiB of responses of 10 KiB each are fetched once; what the node says that they take is held against the
growth of its memory.

`coalescing`: so many clients ask at once for what nobody has, of a member that takes a second to answer.

`purges`: three nodes (of one worker each, on all cores); a response is brought to each, changed at its member and purged; from
the order to the last old response of any of the three, and to the order's answer.

Needs nginx, varnish and wrk.
"""
import argparse, asyncio, http.client, http.server, json, os, pathlib, resource, statistics, subprocess, sys, tempfile, threading, time
import urllib.request

import cluster
from proxy import LOAD_CORE, PROXY_CORE, ROOT, Proc, cpu, free_port, program, pss, start_nginx, wait_port, wrk

ROWS = {
    "small": ("/k", 64, "a hit of 1 KiB, HTTP/1.1, 64 kept connections"),
    "large": ("/l", 16, "a hit of 100 KiB, 16 kept connections"),
}


def origin(dir, port):
    (dir / "www" / "d").mkdir(parents=True)
    for name, size in (("k", 1 << 10), ("l", 100 << 10), ("ten", 10 << 10)):
        (dir / "www" / name).write_bytes(os.urandom(size))
    return start_nginx(dir, "origin", f"""
server {{ listen 127.0.0.1:{port}; root {dir}/www; add_header Cache-Control max-age=86400;
  location /d/ {{ rewrite ^ /ten break; add_header Cache-Control max-age=86400; }} }}
""", LOAD_CORE)


def nginx(dir, port, to):
    return start_nginx(dir, "nginx", f"""
proxy_cache_path {dir}/nginx-cache keys_zone=c:32m max_size=1g inactive=1d;
upstream one {{ server 127.0.0.1:{to}; keepalive 64; }}
server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ proxy_pass http://one; proxy_http_version 1.1; proxy_set_header Connection "";
  proxy_cache c; proxy_cache_lock on; add_header X-Cache $upstream_cache_status; }} }}
""", PROXY_CORE, log=f"{dir}/nginx.log")


def varnish(dir, port, to):
    (dir / "vcl").write_text(f'vcl 4.1;\nbackend one {{ .host = "127.0.0.1"; .port = "{to}"; }}\n')
    return Proc([program("varnishd"), "-F", "-f", str(dir / "vcl"), "-a", f"127.0.0.1:{port}", "-s", "malloc,512m", "-n", str(dir / "varnish"),
                 "-p", "thread_pools=1"], PROXY_CORE, stdout=subprocess.DEVNULL, stderr=(dir / "varnish.err").open("w"))


def trestle(dir, port, admin, to, binary):
    (dir / "trestle.yaml").write_text(f"""
listeners:
  web: {{ bind: "127.0.0.1:{port}", protocol: http, cache: {{ mode: on }}, http: {{ idle: 1h }} }}
routes: {{ one: {{ rules: [{{ pools: [one] }}] }} }}
pools: {{ one: {{ members: ["127.0.0.1:{to}"] }} }}
access_log: {{ format: combined, to: "file:{dir}/trestle.log" }}
""")
    return Proc([binary, "run", "--bootstrap", "--config", str(dir / "trestle.yaml"), "--data-dir", str(dir / "data"),
                 "--workers", "1", "--cluster", "127.0.0.1:0", "--admin", f"127.0.0.1:{admin}", "--cache-memory", "512MiB"], PROXY_CORE,
                stdout=subprocess.DEVNULL, stderr=(dir / "trestle.err").open("w"))


def ask(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return answer.read()


def stats(admin):
    return json.loads(ask(admin, "/v1/cache"))


def filled(a, port, admin, pid):
    count = a.fill * 1024 // 10
    before, bytes_before = pss(pid), stats(admin)["bytes"]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    for number in range(count):
        connection.request("GET", f"/d/{number}")
        connection.getresponse().read()
    connection.close()
    time.sleep(3)
    after, said = pss(pid), stats(admin)
    told, grown = said["bytes"] - bytes_before, after - before
    return {"responses": said["entries"], "told_mib": round(told / 2**20, 1), "grown_mib": round(grown / 2**20, 1),
            "told_of_grown": round(told / grown, 2)}


class Member(http.server.BaseHTTPRequestHandler):
    """Says how often it was asked: at once, or after a second."""
    asked = 0

    def do_GET(self):
        Member.asked += 1
        time.sleep(1 if self.path == "/slow" else 0)
        text = str(Member.asked).encode()
        self.send_response(200)
        self.send_header("cache-control", "max-age=3600")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


async def crowd(port, count, path):
    """What so many clients get that ask at once."""
    async def one():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await gate.wait()
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        return answer.split(b" ")[1] == b"200"

    gate = asyncio.Event()
    clients = [asyncio.ensure_future(one()) for _ in range(count)]
    await asyncio.sleep(1)
    gate.set()
    return await asyncio.gather(*clients)


def put(nodes, member):
    text = (f'listeners: {{ web: {{ bind: "127.0.0.1:0", protocol: http, cache: {{ mode: on }} }} }}\n'
            f'routes: {{ r: {{ rules: [{{ pools: [p] }}] }} }}\n'
            f'pools: {{ p: {{ members: ["127.0.0.1:{member}"], health: off }} }}\naccess_log: {{ format: "off" }}\n')
    cluster.put(nodes[0], text)
    ports = [cluster.until("the listener", node.web) for node in nodes]
    for node, port in zip(nodes, ports):
        cluster.until("a cache that is trusted", lambda: json.loads(node.ask("GET", "/v1/cache")[1])["trusted"])
        cluster.until("an answer", lambda: ask(port, "/first"))
    return ports


def together(a):
    """Coalescing on one node, and purges over three."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Member)
    server.request_queue_size = 128
    threading.Thread(target=server.serve_forever, daemon=True).start()
    result, nodes = {}, []
    with tempfile.TemporaryDirectory() as tmp:
        try:
            nodes = cluster.start(a, pathlib.Path(tmp), server.server_port)
            ports = put(nodes, server.server_port)
            if a.clients:
                before = Member.asked
                fine = asyncio.run(crowd(ports[0], a.clients, "/slow"))
                result["coalescing"] = {"clients": a.clients, "answered": sum(fine), "origin_requests": Member.asked - before}
            if a.purges:
                result["purges"] = purges(a, nodes, ports)
        finally:
            for node in nodes:
                node.p.kill()
                node.p.wait()
            server.shutdown()
    return result


def purges(a, nodes, ports):
    last, answered = [], []
    for number in range(a.purges):
        old = {port: ask(port, "/purged") for port in ports}
        assert all(ask(port, "/purged") == text for port, text in old.items()), "it was not kept"
        url = f"http://127.0.0.1:{ports[0]}/purged", f"http://127.0.0.1:{ports[1]}/purged", f"http://127.0.0.1:{ports[2]}/purged"
        order, ended = json.dumps({"urls": url}), []

        def send():
            status, text = nodes[number % 3].ask("POST", "/v1/cache/purge", order, {"content-type": "application/json"})
            ended.append((status, time.perf_counter(), json.loads(text)))

        sender, stale_at = threading.Thread(target=send), 0.0
        began = time.perf_counter()
        sender.start()
        waiting = set(ports)
        while waiting:
            for port in list(waiting):
                sent = time.perf_counter()
                if ask(port, "/purged") == old[port]:
                    stale_at = max(stale_at, sent)
                else:
                    waiting.discard(port)
        sender.join()
        status, at, told = ended[0]
        assert status == 200 and len(told["nodes"]) == 3, told
        last.append(max(0, stale_at - began) * 1e3)
        answered.append((at - began) * 1e3)
    spread = lambda values: {"p50": round(cluster.quantile(values, .5), 1), "worst": round(max(values), 1)}
    return {"purges": a.purges, "nodes": 3, "last_old_response_ms": spread(last), "order_answered_ms": spread(answered)}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--rows", type=lambda v: v.split(","), default=list(ROWS), help=f"of {', '.join(ROWS)}")
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--seconds", type=int, default=3)
    ap.add_argument("--fill", type=int, default=100, help="MiB; 0: not measured")
    ap.add_argument("--clients", type=int, default=1000, help="that ask at once; 0: not measured")
    ap.add_argument("--purges", type=int, default=50, help="0: not measured")
    ap.add_argument("--trestle", default=str(ROOT / "target/release/trestle"))
    a = ap.parse_args()
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    with tempfile.TemporaryDirectory() as tmp:
        dir = pathlib.Path(tmp)
        dir.chmod(0o755)  # nginx and varnish serve as somebody else
        to, admin = free_port(), free_port()
        ports = {name: free_port() for name in ("trestle", "nginx", "varnish")}
        with origin(dir, to), nginx(dir, ports["nginx"], to) as of_nginx, varnish(dir, ports["varnish"], to) as of_varnish, \
                trestle(dir, ports["trestle"], admin, to, a.trestle) as of_trestle:
            pids = {"trestle": of_trestle.pid, "nginx": of_nginx.pid, "varnish": of_varnish.pid}
            wait_port(to, "the origin")
            for name, port in ports.items():
                wait_port(port, name)
            # It has a seat by then, without which it serves nothing unasked.
            end = time.time() + 20
            while not stats(admin)["trusted"]:
                if time.time() > end:
                    sys.exit("the node does not trust its cache")
                time.sleep(0.05)
            result = {"rows": {}}
            for row in a.rows:
                path, connections, what = ROWS[row]
                micros = {name: [] for name in ports}
                for turn in range(-1, a.rounds):
                    for name, port in ports.items():
                        before = cpu(pids[name])
                        units = wrk(f"http://127.0.0.1:{port}{path}", 1 if turn < 0 else a.seconds, connections)
                        used = (cpu(pids[name]) - before) / units * 1e6
                        if turn >= 0:
                            micros[name].append(used)
                            print(f"{row:8} round {turn + 1} {name:8} {used:8.2f} us", file=sys.stderr)
                ratio = [t / min(n, v) for t, n, v in zip(micros["trestle"], micros["nginx"], micros["varnish"])]
                result["rows"][row] = {"what": what, "cpu_us": {n: round(statistics.median(v), 2) for n, v in micros.items()},
                                       "ratio_to_the_better": round(statistics.median(ratio), 3)}
            told = stats(admin)
            result["hits"] = {"hits": told["hits"], "misses": told["misses"]}
            if a.fill:
                result["memory"] = filled(a, ports["trestle"], admin, pids["trestle"])
        if a.clients or a.purges:
            result |= together(a)
        print(json.dumps(result | {"rounds": a.rounds, "seconds": a.seconds}, indent=1))


if __name__ == "__main__":
    main()
