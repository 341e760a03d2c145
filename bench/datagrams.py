#!/usr/bin/env python3
"""CPU time per datagram of UDP beside nginx (stream), in one run.

    cargo build --release
    bench/datagrams.py [--rounds 5] [--seconds 3] [--rows ping,stream]

As bench/proxy.py: one worker each on one core, the load and the backend on the other, rounds
interleaved, CPU time as the kernel accounts it. A datagram is one that is passed on, in either
direction.

Needs nginx with its stream module (libnginx-mod-stream).
"""
import argparse, json, pathlib, resource, select, socket, statistics, subprocess, sys, tempfile, time

import proxy
from proxy import LOAD_CORE, PROXY_CORE, Proc, cpu, program

MODULE = "/usr/lib/nginx/modules/ngx_stream_module.so"
ROWS = {
    "ping": "64 B there and back, 64 clients, each with one on its way",
    "stream": "64 B there, 32 at once back, 16 clients",
    "dns": "64 B there and back, one session each (replies: 1)",
}


def free_port():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def backend(ports):
    """Answers each datagram: on the first port once, on the second 32 times."""
    sockets = []
    for port in ports:
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        s.bind(("127.0.0.1", port))
        s.setblocking(False)
        sockets.append(s)
    while True:
        for s in select.select(sockets, [], [])[0]:
            times = 1 if s is sockets[0] else 32
            try:
                while True:
                    data, client = s.recvfrom(2048)
                    for _ in range(times):
                        s.sendto(data, client)
            except BlockingIOError:
                pass


def client(port, clients, seconds, answers, fresh):
    """Prints how many datagrams went to and came from the port."""
    data, count = b"x" * 64, 0
    def new():
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.connect(("127.0.0.1", port))
        s.setblocking(False)
        return s
    poll, held = select.epoll(), {}
    def begin(s):
        held[s.fileno()] = [s, 0]
        poll.register(s, select.EPOLLIN)
        s.send(data)
    for _ in range(clients):
        begin(new())
    count, end = clients, time.time() + seconds
    while time.time() < end:
        ready = poll.poll(1)
        if not ready:  # Something was lost: ask again.
            for s, _ in held.values():
                s.send(data)
                count += 1
        for fd, _ in ready:
            entry = held[fd]
            try:
                while True:
                    entry[0].recv(2048)
                    count += 1
                    entry[1] += 1
                    if entry[1] % answers == 0:
                        if fresh:
                            poll.unregister(fd)
                            del held[fd]
                            entry[0].close()
                            begin(new())
                        else:
                            entry[0].send(data)
                        count += 1
                        break
            except BlockingIOError:
                pass
    print(count)


def nginx(dir, ports, to):
    d = dir / "nginx"
    d.mkdir()
    servers = "".join(f"server {{ listen 127.0.0.1:{ports[row]} udp; proxy_pass 127.0.0.1:{to[row == 'stream']}; "
                      f"{'proxy_responses 1;' if row == 'dns' else ''} proxy_timeout 60s; }}\n" for row in ROWS)
    (d / "conf").write_text(f"""load_module {MODULE};
daemon off; worker_processes 1; pid {d}/pid; error_log {d}/error.log;
events {{ worker_connections 19000; }}
stream {{ access_log off; {servers} }}
""")
    return Proc([program("nginx"), "-p", str(d), "-c", str(d / "conf")], PROXY_CORE, stderr=subprocess.DEVNULL)


def trestle(dir, ports, to, binary):
    listeners = "".join(f'  {row}: {{ bind: "127.0.0.1:{ports[row]}", protocol: udp, pool: p{int(row == "stream")}, '
                        f'udp: {{ idle: 60s, replies: {int(row == "dns")} }} }}\n' for row in ROWS)
    pools = "".join(f'  p{n}: {{ members: ["127.0.0.1:{port}"] }}\n' for n, port in enumerate(to))
    (dir / "trestle.yaml").write_text(f"listeners:\n{listeners}pools:\n{pools}")
    return Proc([binary, "run", "--bootstrap", "--config", str(dir / "trestle.yaml"), "--data-dir", str(dir / "data"),
                 "--workers", "1", "--cluster", "127.0.0.1:0", "--admin", "127.0.0.1:0"], PROXY_CORE,
                stdout=subprocess.DEVNULL, stderr=(dir / "trestle.err").open("w"))


def load(row, port, seconds):
    clients, answers = (16, 32) if row == "stream" else (64, 1)
    out = proxy.run([sys.executable, __file__, "--client", f"{port},{clients},{seconds},{answers},{int(row == 'dns')}"])
    return int(out)


def wait(port, what):
    end = time.time() + 20
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(0.2)
        while time.time() < end:
            try:
                s.sendto(b"x", ("127.0.0.1", port))
                s.recv(64)
                return
            except OSError:
                time.sleep(0.05)
    sys.exit(f"{what} does not answer on port {port}")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--rows", type=lambda v: v.split(","), default=list(ROWS), help=f"of {', '.join(ROWS)}")
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--seconds", type=int, default=3)
    ap.add_argument("--trestle", default=str(proxy.ROOT / "target/release/trestle"))
    ap.add_argument("--client", help=argparse.SUPPRESS)
    ap.add_argument("--backend", help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.client:
        port, clients, seconds, answers, fresh = map(int, a.client.split(","))
        return client(port, clients, seconds, answers, fresh)
    if a.backend:
        return backend(map(int, a.backend.split(",")))
    if not pathlib.Path(MODULE).exists():
        sys.exit("nginx has no stream module: install libnginx-mod-stream")
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    with tempfile.TemporaryDirectory() as tmp:
        dir = pathlib.Path(tmp)
        dir.chmod(0o755)
        to = [free_port(), free_port()]
        ports = {name: {row: free_port() for row in ROWS} for name in ("nginx", "trestle")}
        args = [sys.executable, __file__, "--backend", ",".join(map(str, to))]
        with Proc(args, LOAD_CORE), nginx(dir, ports["nginx"], to) as of_nginx, \
                trestle(dir, ports["trestle"], to, a.trestle) as of_trestle:
            pids = {"nginx": of_nginx.pid, "trestle": of_trestle.pid}
            for name, of_rows in ports.items():
                for port in of_rows.values():
                    wait(port, name)
            rows = {}
            for row in a.rows:
                micros = {name: [] for name in pids}
                for turn in range(-1, a.rounds):
                    for name, pid in pids.items():
                        before = cpu(pid)
                        count = load(row, ports[name][row], 1 if turn < 0 else a.seconds)
                        used = (cpu(pid) - before) / count * 1e6
                        if turn >= 0:
                            micros[name].append(used)
                            print(f"{row:8} round {turn + 1} {name:8} {used:8.3f} us, {count} datagrams", file=sys.stderr)
                ratios = [t / n for t, n in zip(micros["trestle"], micros["nginx"])]
                rows[row] = {"what": ROWS[row], "cpu_us_a_datagram": {n: round(statistics.median(v), 3) for n, v in micros.items()},
                             "ratio_to_nginx": round(statistics.median(ratios), 3), "ratios": [round(r, 3) for r in sorted(ratios)]}
            print(json.dumps({"rows": rows, "rounds": a.rounds, "seconds": a.seconds}, indent=1))


if __name__ == "__main__":
    main()
