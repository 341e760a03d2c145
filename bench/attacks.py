#!/usr/bin/env python3
"""How honest clients fare while others attack, on one node that has nothing configured but what it must.

    cargo build --release
    bench/attacks.py [--rows headers,body,range,read,junk] [--seconds 20] [--connections 4000] [--junk 5000]
                     [--limit 200]

For each row 100 honest requests a second, each on a connection of its own, go on for as long as the attack,
and a while after it. Told is the share that was answered with 200 within 5 s, the slowest of them, and the
node's memory before, during and after.

headers, body, range, read: the four attacks of slowhttptest, from 127.0.0.1; read asks for 1 MiB.
--limit: `limits: { connections_per_client: N }` on the listeners. junk: that many connections a
second, half of them to the port of TLS, each with 64 random bytes, from 127.0.0.3. Honest clients are 127.0.0.2.

Needs nginx, openssl and slowhttptest. Everything listens on loopback and ends with the script.
"""
import argparse, multiprocessing, os, pathlib, random, resource, socket, subprocess, sys, tempfile, threading, time

import proxy
from proxy import LOAD_CORE, PROXY_CORE, ROOT, Proc, free_port, program, pss, wait_port

ATTACKS = {
    "headers": ["-H", "-i", "5"],
    "body": ["-B", "-i", "5", "-s", "8192"],
    "range": ["-R", "-a", "10", "-b", "3000"],
    "read": ["-X", "-w", "512", "-y", "1024", "-n", "5", "-z", "32", "-k", "3"],
}


def honest(port, until, results):
    """One request; when it was due, and how long it took, or None."""
    def one(due):
        try:
            with socket.create_connection(("127.0.0.1", port), 5, source_address=("127.0.0.2", 0)) as s:
                s.settimeout(5)
                s.sendall(b"GET / HTTP/1.1\r\nHost: honest.example.com\r\nConnection: close\r\n\r\n")
                head = s.recv(4096)
                fine = head.startswith(b"HTTP/1.1 200")
                while s.recv(65536):
                    pass
            took = time.time() - due
            results.append(took if fine and took <= 5 else None)
        except OSError:
            results.append(None)
    due, threads = time.time(), []
    while due < until():
        time.sleep(max(0, due - time.time()))
        threads.append(threading.Thread(target=one, args=(due,)))
        threads[-1].start()
        due += 0.01
    for thread in threads:
        thread.join()


def junk(ports, rate, seconds):
    """In a process of its own."""
    end, due, sent = time.time() + seconds, time.time(), 0
    while time.time() < end:
        due += 1 / rate
        time.sleep(max(0, due - time.time()))
        s = socket.socket()
        try:
            s.bind(("127.0.0.3", 0))
            s.settimeout(1)
            s.connect(("127.0.0.1", ports[sent % len(ports)]))
            s.send(random.randbytes(64))
            sent += 1
        except OSError:
            pass
        s.close()
    print(f"  junk: {sent / seconds:.0f} connections a second by one of the processes", flush=True)


def attack(row, ports, args):
    if row == "junk":
        many = 2
        all = [multiprocessing.Process(target=junk, args=(ports, args.junk / many, args.seconds)) for _ in range(many)]
        for p in all:
            p.start()
        for p in all:
            p.join()
        return
    path = "large" if row == "read" else ""
    command = ["slowhttptest", *ATTACKS[row], "-c", str(args.connections), "-r", "1000", "-l", str(args.seconds),
               "-u", f"http://127.0.0.1:{ports[0]}/{path}", "-p", "5"]
    subprocess.run(["taskset", "-c", str(LOAD_CORE), *command], stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="headers,body,range,read,junk")
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--connections", type=int, default=4000)
    parser.add_argument("--junk", type=int, default=5000)
    parser.add_argument("--limit", type=int, default=0)
    args = parser.parse_args()
    rows = args.rows.split(",")
    for name in ["nginx", "openssl"] + ([] if rows == ["junk"] else ["slowhttptest"]):
        program(name)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.sched_setaffinity(0, {LOAD_CORE})
    with tempfile.TemporaryDirectory() as name:
        dir = pathlib.Path(name)
        ports, origin = [free_port(), free_port()], free_port()
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                        "-keyout", dir / "key.pem", "-out", dir / "cert.pem", "-subj", "/CN=localhost", "-days", "2",
                        "-addext", "subjectAltName=DNS:localhost"], check=True, stderr=subprocess.DEVNULL)
        limits = f", limits: {{ connections_per_client: {args.limit} }}" if args.limit else ""
        (dir / "config.yaml").write_text(f"""
listeners:
  web: {{ bind: "127.0.0.1:{ports[0]}", protocol: http, pool: app{limits} }}
  tls: {{ bind: "127.0.0.1:{ports[1]}", protocol: https, pool: app, tls: {{ certificates: [own] }}{limits} }}
certificates: {{ own: {{ chain_file: {dir}/cert.pem, key_file: {dir}/key.pem }} }}
pools: {{ app: {{ members: ["127.0.0.1:{origin}"] }} }}
access_log: {{ format: json, to: "file:{dir}/access.log" }}
""")
        # The origin's worker is somebody else.
        dir.chmod(0o755)
        (dir / "large").write_bytes(b"x" * (1 << 20))
        site = f'server {{ listen 127.0.0.1:{origin}; location = / {{ return 200 "{"x" * 1024}"; }} ' \
               f'location = /large {{ root {dir}; }} }}'
        node = [str(ROOT / "target/release/trestle"), "run", "--bootstrap", "--workers", "1", "--data-dir",
                str(dir / "node"), "--cluster", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--config",
                str(dir / "config.yaml")]
        log = open(dir / "node.log", "w")
        with proxy.start_nginx(dir, "origin", site, LOAD_CORE), Proc(node, PROXY_CORE, stderr=log) as trestle:
            for port in ports + [origin]:
                wait_port(port, "a program")
            for row in rows:
                measure(row, ports, trestle, args)


def measure(row, ports, trestle, args):
    before, during, results, over = pss(trestle.pid), [], [], []
    running = threading.Thread(target=lambda: (attack(row, ports, args), over.append(time.time())))
    load = threading.Thread(target=honest, args=(ports[0], lambda: over[0] + 2 if over else float("inf"), results))
    load.start()
    time.sleep(1)
    running.start()
    while load.is_alive():
        during.append(pss(trestle.pid))
        load.join(0.25)
    time.sleep(3)
    served = [took for took in results if took is not None]
    if not served:
        sys.exit(f"{row}: none of {len(results)} honest requests was served")
    mib = lambda bytes: f"{bytes / (1 << 20):.0f} MiB"
    print(f"{row}: {len(served)} of {len(results)} honest requests served ({100 * len(served) / len(results):.2f} %), "
          f"slowest {1000 * max(served, default=0):.0f} ms, median {1000 * sorted(served)[len(served) // 2]:.1f} ms; "
          f"memory {mib(before)} before, {mib(max(during))} at most, {mib(pss(trestle.pid))} after", flush=True)


if __name__ == "__main__":
    main()
