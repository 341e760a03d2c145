#!/usr/bin/env python3
"""How fast a cluster of three real processes on loopback takes a change, and heals.

    cargo build --release
    bench/cluster.py apply    [--changes 200]   # acknowledged apply -> served by the new rule on every node
    bench/cluster.py election [--runs 20]       # kill -9 of the leader -> a write succeeds again
    bench/cluster.py heartbeats [--seconds 30]  # how long followers hear nothing of the leader, idle and with all
                                                # workers and cores busy (takes wrk)

Prints one JSON line. Everything listens on loopback and ends with the script.
"""
import argparse, http.client, http.server, json, pathlib, signal, statistics, subprocess, sys, tempfile, threading, time

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Node:
    def __init__(self, trestle, dir, name, args):
        self.trestle, self.dir, self.name, self.args = trestle, dir, name, args
        self.spawn(args)

    def spawn(self, args):
        self.log = (self.dir / f"{self.name}.log").open("a")
        self.p = subprocess.Popen(
            [self.trestle, "run", "--name", self.name, "--data-dir", str(self.dir / self.name), "--cluster", "127.0.0.1:0",
             "--admin", "127.0.0.1:0", "--workers", "1", "--key-file", str(self.dir / "key")] + args,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self.log)

    def port(self, name):
        value = json.loads((self.dir / self.name / "ports.json").read_text())[name]
        return int(str(value).rsplit(":", 1)[-1])

    def ask(self, method, path, body=None, headers={}, timeout=8):
        c = http.client.HTTPConnection("127.0.0.1", self.port("admin"), timeout=timeout)
        try:
            c.request(method, path, body, headers)
            r = c.getresponse()
            return r.status, r.read()
        finally:
            c.close()

    def status(self):
        return json.loads(self.ask("GET", "/v1/status", timeout=2)[1])

    def web(self):
        for listener in self.status()["listeners"]:
            if listener["listener"] == "web":
                return int(listener["address"].rsplit(":", 1)[-1])


def until(what, ask, deadline=30):
    end = time.time() + deadline
    last = None
    while time.time() < end:
        try:
            answer = ask()
            if answer:
                return answer
        except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException) as e:
            last = e
        time.sleep(0.02)
    sys.exit(f"not within {deadline} s: {what} ({last})")


def config(backend, n):
    return (f'listeners: {{ web: {{ bind: "127.0.0.1:0", protocol: http }} }}\n'
            f'routes: {{ r: {{ rules: [{{ match: [{{ path: {{ exact: /r{n} }} }}], pools: [p] }}] }} }}\n'
            f'pools: {{ p: {{ members: ["127.0.0.1:{backend}"], health: off }} }}\naccess_log: {{ format: "off" }}\n')


def put(node, text):
    status, body = node.ask("PUT", "/v1/config", text, {"content-type": "application/yaml"})
    if status != 200:
        raise OSError(f"{status}: {body[:300]}")
    return json.loads(body)


def served(port, path):
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        c.request("GET", path)
        return c.getresponse().status == 200
    finally:
        c.close()


class Backend(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def start(a, dir, backend):
    subprocess.run([a.trestle, "keygen", "-o", str(dir / "key")], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (dir / "c.yaml").write_text(config(backend, 0))
    nodes = [Node(a.trestle, dir, "n1", ["--bootstrap", "--config", str(dir / "c.yaml")])]
    seed = until("n1 answers", lambda: nodes[0].status() and nodes[0].port("cluster"))
    nodes += [Node(a.trestle, dir, f"n{i}", ["--join", f"127.0.0.1:{seed}"]) for i in (2, 3)]
    whole(nodes)
    return nodes


def whole(nodes):
    for node in nodes:
        until(f"{node.name} sees three voters", lambda: sum(
            n["membership"] == "voter" and n["alive"] and n["seated"] for n in node.status()["nodes"]) == 3 and node.status()["ready"])


def quantile(values, q):
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def apply(a, dir, backend, nodes):
    ports = [n.web() for n in nodes]
    waits, calls = [], []
    for i in range(1, a.changes + 1):
        begin = time.perf_counter()
        put(nodes[i % 3], config(backend, i))
        acknowledged = time.perf_counter()
        for port in ports:
            while not served(port, f"/r{i}"):
                pass
        waits.append((time.perf_counter() - acknowledged) * 1e3)
        calls.append((acknowledged - begin) * 1e3)
    return {"changes": a.changes, "served_everywhere_ms": {"p50": round(quantile(waits, .5), 2), "p99": round(quantile(waits, .99), 2)},
            "acknowledged_ms": {"p50": round(quantile(calls, .5), 2), "p99": round(quantile(calls, .99), 2)}}


def election(a, dir, backend, nodes):
    took = []
    for i in range(1, a.runs + 1):
        leader = until("a leader", lambda: next((n["name"] for n in nodes[0].status()["nodes"] if n["leader"]), None))
        victim = next(n for n in nodes if n.name == leader)
        other = next(n for n in nodes if n.name != leader)
        victim.p.send_signal(signal.SIGKILL)
        begin = time.perf_counter()
        victim.p.wait()
        while True:
            try:
                put(other, config(backend, i))
                break
            except (OSError, http.client.HTTPException):
                if time.perf_counter() - begin > 30:
                    sys.exit("no write succeeded within 30 s")
        took.append((time.perf_counter() - begin) * 1e3)
        print(f"run {i}: {took[-1]:.0f} ms", file=sys.stderr)
        victim.spawn([])
        whole(nodes)
    return {"runs": a.runs, "write_again_ms": {"median": round(statistics.median(took)), "worst": round(max(took))}}


NAME = "trestle_raft_leader_silence_seconds_bucket"


def silences(node):
    text = node.ask("GET", "/metrics")[1].decode()
    rows = [line.split() for line in text.splitlines() if line.startswith(NAME)]
    buckets = [(row[0].split('"')[1], int(row[1])) for row in rows]
    term = next(int(float(line.split()[1])) for line in text.splitlines() if line.startswith("trestle_raft_term "))
    return buckets, term


def heartbeats(a, dir, backend, nodes):
    text = config(backend, 0).replace("pools: [p] }", 'pools: [p] }, { match: [{ path: { exact: /fixed } }], '
                                      'respond: { code: 200, body: ok } }')
    put(nodes[0], text)
    ports = [until("web", n.web) for n in nodes]
    until("the rule", lambda: all(served(port, "/fixed") for port in ports))
    told = {}
    for phase in ("idle", "busy"):
        load = []
        if phase == "busy":
            load = [subprocess.Popen(["wrk", "-t1", "-c64", f"-d{a.seconds}s", f"http://127.0.0.1:{port}/fixed"],
                                     stdout=subprocess.PIPE, text=True) for port in ports]
            time.sleep(1)
        before = [silences(n) for n in nodes]
        time.sleep(a.seconds - 2)
        after = [silences(n) for n in nodes]
        requests = sum(float(line.split()[1]) for p in load for line in p.communicate()[0].splitlines()
                       if line.startswith("Requests/sec"))
        grown = [(bound, sum(x[0][i][1] - y[0][i][1] for x, y in zip(after, before)))
                 for i, (bound, _) in enumerate(after[0][0])]
        count = grown[-1][1]
        worst = next((bound for bound, n in grown if n == count), "+Inf")
        told[phase] = {"messages": count, "worst_at_most_s": worst, "elections": after[0][1] - before[0][1],
                       "later_than": {bound: count - n for bound, n in grown if 0 < count - n < count},
                       "requests_per_s": round(requests)}
    return told


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("what", choices=["apply", "election", "heartbeats"])
    ap.add_argument("--changes", type=int, default=200)
    ap.add_argument("--runs", type=int, default=20)
    ap.add_argument("--seconds", type=int, default=30)
    ap.add_argument("--trestle", default=str(ROOT / "target/release/trestle"))
    a = ap.parse_args()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Backend)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    nodes = []
    with tempfile.TemporaryDirectory() as tmp:
        try:
            nodes = start(a, pathlib.Path(tmp), server.server_port)
            print(json.dumps({"apply": apply, "election": election, "heartbeats": heartbeats}[a.what](a, pathlib.Path(tmp), server.server_port, nodes)))
        finally:
            for node in nodes:
                node.p.kill()
                node.p.wait()


if __name__ == "__main__":
    main()
