#!/usr/bin/env python3
"""CPU time per unit of carried TCP beside nginx (stream) and HAProxy, and memory of idle connections, in one run.

    cargo build --release
    bench/streams.py [--rows ping,bulk,new] [--rounds 5] [--seconds 3] [--idle 6000]

As bench/proxy.py: one worker each on one core, the load and the backend on the other, rounds
interleaved, CPU time as the kernel accounts it (user and system of all of a product's threads),
no access log.

Needs haproxy, and nginx with its stream module (libnginx-mod-stream).
"""
import argparse, json, os, pathlib, resource, select, socket, statistics, subprocess, sys, tempfile, time

import proxy
from proxy import LOAD_CORE, PROXY_CORE, Proc, cpu, free_port, program, pss, wait_port

MODULE = "/usr/lib/nginx/modules/ngx_stream_module.so"
ROWS = {
    "ping": ("message", "1 KiB there and back, 64 connections"),
    "bulk": ("GiB", "one way to the client, 8 connections"),
    "new": ("connection", "a connection, 64 B there and back, and its end"),
}


def backend(port):
    """Echoes; a connection that begins with `B` gets bytes without end."""
    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    listener.setblocking(False)
    poll, held, bulk = select.epoll(), {}, b"x" * (1 << 20)
    poll.register(listener, select.EPOLLIN)
    def end(fd):
        held.pop(fd)[0].close()
    while True:
        for fd, _ in poll.poll():
            if fd == listener.fileno():
                try:
                    while True:
                        s, _ = listener.accept()
                        s.setblocking(False)
                        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        held[s.fileno()] = [s, False]
                        poll.register(s, select.EPOLLIN)
                except BlockingIOError:
                    continue
            entry = held.get(fd)
            if not entry:
                continue
            try:
                if not entry[1]:
                    data = entry[0].recv(65536)
                    if not data:
                        end(fd)
                        continue
                    if data[:1] == b"B":
                        entry[1] = True
                        poll.modify(fd, select.EPOLLOUT)
                    else:
                        entry[0].send(data)
                        continue
                entry[0].send(bulk)
            except BlockingIOError:
                pass
            except OSError:
                end(fd)


def connect(port):
    s = socket.create_connection(("127.0.0.1", port), 5)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return s


def ping(port, seconds):
    data, count, poll = b"p" * 1024, 0, select.epoll()
    held = {}
    for _ in range(64):
        s = connect(port)
        held[s.fileno()] = [s, 0]
        poll.register(s, select.EPOLLIN)
        s.send(data)
    end = time.time() + seconds
    while time.time() < end:
        for fd, _ in poll.poll(1):
            entry = held[fd]
            entry[1] += len(entry[0].recv(4096))
            if entry[1] == 1024:
                entry[1] = 0
                entry[0].send(data)
                count += 1
    return count


def bulk(port, seconds):
    poll, held, space, count = select.epoll(), {}, bytearray(1 << 20), 0
    for _ in range(8):
        s = connect(port)
        held[s.fileno()] = s
        poll.register(s, select.EPOLLIN)
        s.send(b"B")
    end = time.time() + seconds
    while time.time() < end:
        for fd, _ in poll.poll(1):
            count += held[fd].recv_into(space, len(space), socket.MSG_TRUNC)
    return count / (1 << 30)


def new(port, seconds):
    count, end = 0, time.time() + seconds
    while time.time() < end:
        with connect(port) as s:
            s.send(b"n" * 64)
            s.recv(64)
            s.shutdown(socket.SHUT_WR)
            s.recv(64)
        count += 1
    return count


def nginx(dir, port, to):
    d = dir / "nginx"
    d.mkdir()
    (d / "conf").write_text(f"""load_module {MODULE};
daemon off; worker_processes 1; pid {d}/pid; error_log {d}/error.log;
events {{ worker_connections 25000; }}
stream {{ access_log off; server {{ listen 127.0.0.1:{port} backlog=4096; proxy_pass 127.0.0.1:{to}; proxy_timeout 1h; tcp_nodelay on; }} }}
""")
    return Proc([program("nginx"), "-p", str(d), "-c", str(d / "conf")], PROXY_CORE, stderr=subprocess.DEVNULL)


def haproxy(dir, port, to, connections):
    (dir / "haproxy.cfg").write_text(f"""global
  nbthread 1
  maxconn {connections}
defaults
  mode tcp
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  option splice-auto
listen l
  bind 127.0.0.1:{port}
  server s 127.0.0.1:{to}
""")
    return Proc([program("haproxy"), "-db", "-f", str(dir / "haproxy.cfg")], PROXY_CORE, stderr=subprocess.DEVNULL)


def trestle(dir, port, to, binary):
    (dir / "trestle.yaml").write_text(f"""access_log: {{ to: "file:/dev/null" }}
listeners:
  l: {{ bind: "127.0.0.1:{port}", protocol: tcp, pool: p }}
pools:
  p: {{ members: ["127.0.0.1:{to}"], breaker: {{ connections: 0 }} }}
""")
    return Proc([binary, "run", "--bootstrap", "--config", str(dir / "trestle.yaml"), "--data-dir", str(dir / "data"),
                 "--workers", "1", "--cluster", "127.0.0.1:0", "--admin", "127.0.0.1:0"], PROXY_CORE,
                stdout=subprocess.DEVNULL, stderr=(dir / "trestle.err").open("w"))


def idle_memory(port, pid, count, rest):
    """Bytes for each of so many connections that have carried something, and then nothing."""
    before, held = pss(pid), []
    for _ in range(count):
        s = connect(port)
        s.send(b"i" * 64)
        s.recv(64)
        held.append(s)
    time.sleep(rest)
    used = (pss(pid) - before) / count
    for s in held:
        s.close()
    return used


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--rows", type=lambda v: v.split(","), default=list(ROWS), help=f"of {', '.join(ROWS)}")
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--seconds", type=int, default=3)
    ap.add_argument("--idle", type=int, default=6000, help="idle connections; 0: not measured")
    ap.add_argument("--rest", type=float, default=4, help="seconds that they have been idle")
    ap.add_argument("--trestle", default=str(proxy.ROOT / "target/release/trestle"))
    ap.add_argument("--client", help=argparse.SUPPRESS)
    ap.add_argument("--backend", type=int, help=argparse.SUPPRESS)
    a = ap.parse_args()
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if a.client:
        row, port, seconds = a.client.split(",")
        return print({"ping": ping, "bulk": bulk, "new": new}[row](int(port), int(seconds)))
    if a.backend:
        return backend(a.backend)
    if not pathlib.Path(MODULE).exists():
        sys.exit("nginx has no stream module: install libnginx-mod-stream")
    if files < 3 * a.idle + 1000:
        sys.exit(f"{a.idle} idle connections need a hard limit of {3 * a.idle + 1000} open files")
    with tempfile.TemporaryDirectory() as tmp:
        dir = pathlib.Path(tmp)
        dir.chmod(0o755)
        to, ports = free_port(), {name: free_port() for name in ("nginx", "haproxy", "trestle")}
        with Proc([sys.executable, __file__, "--backend", str(to)], LOAD_CORE), nginx(dir, ports["nginx"], to) as of_nginx, \
                haproxy(dir, ports["haproxy"], to, a.idle + 500) as of_haproxy, trestle(dir, ports["trestle"], to, a.trestle) as of_trestle:
            pids = {"nginx": of_nginx.pid, "haproxy": of_haproxy.pid, "trestle": of_trestle.pid}
            wait_port(to, "the backend")
            for name, port in ports.items():
                wait_port(port, name)
            rows = {}
            for row in a.rows:
                unit, what = ROWS[row]
                micros = {name: [] for name in pids}
                for turn in range(-1, a.rounds):
                    for name, pid in pids.items():
                        before = cpu(pid)
                        args = [sys.executable, __file__, "--client", f"{row},{ports[name]},{1 if turn < 0 else a.seconds}"]
                        count = float(proxy.run(args))
                        used = (cpu(pid) - before) / count * 1e6
                        if turn >= 0:
                            micros[name].append(used)
                            print(f"{row:6} round {turn + 1} {name:8} {used:12.2f} us a {unit}, {count:.2f}", file=sys.stderr)
                best = [min(n, h) for n, h in zip(micros["nginx"], micros["haproxy"])]
                ratios = sorted(round(t / b, 3) for t, b in zip(micros["trestle"], best))
                rows[row] = {"what": what, f"cpu_us_a_{unit}": {n: round(statistics.median(v), 2) for n, v in micros.items()},
                             "ratio_to_the_better": statistics.median(ratios), "ratios": ratios}
            result = {"rows": rows}
            if a.idle:
                result["idle_connection_bytes"] = {n: round(idle_memory(ports[n], p, a.idle, a.rest)) for n, p in pids.items()}
            print(json.dumps(result | {"rounds": a.rounds, "seconds": a.seconds, "idle": a.idle}, indent=1))


if __name__ == "__main__":
    main()
