#!/usr/bin/env python3
"""What becomes of established connections when their balancer goes: the kernel path (`via: kernel`) beside HAProxy
behind keepalived.

    cargo build --release
    bench/kernel.py flows [--connections 1000] [--events move,kill,...] [--products trestle,haproxy] [--runs 1]
    bench/kernel.py cost [--rounds 5] [--gib 2] [--new 4000]
    bench/kernel.py tracked [--flows 1000000]

Needs root, iproute2, and for their rows haproxy and keepalived. Everything is in network namespaces of its own, on
198.18.0.0/15, and ends with the script. Prints one JSON line a row.

`flows`: connections whose bytes are checked both ways (tests/src/flows.py), and in the middle of it
    move         the VIP moves as planned
    kill         kill -9 of the owner and its guard (of haproxy and keepalived, whose interface goes down as well:
                 else the address stays)
    add, remove  a member is added to the pool, or removed
    add-kill, add-move, remove-kill, remove-move
                 the same, and 3 s later the owner is killed, or the VIP moves
`slow` is how many connections had a record that took more than 50 ms, `late_ms` the longest that one took,
`lag_ms` how long the load itself was held up by a busy machine; `again` are segments that were sent again.

`cost`: CPU time of everything on the way, client and member included, for each GiB from a member to a client, and for
each connection (made, 64 bytes there and back, ended), by

    direct       client and member side by side
    routed       a router between them, which does nothing else
    dnat         the same with one rule of nf_tables that rewrites the destination, and so connection tracking
    kernel       `via: kernel`
    dsr          the same with `mode: dsr`, the member beside the client: what it sends does not pass the node
    proxy        the same listener `via: proxy`
    haproxy      HAProxy, mode tcp, one thread

in rounds one after the other. `above` is what is more than `direct`, so the cost of what stands between; both
beside `routed`. Packets are forwarded in the time of whoever sends them, so it all shows.

`tracked`: so many flows of UDP, from as many clients, held by connection tracking at once. On the way, what a new flow
costs (the CPU time of its first datagram from the sender's socket to the member's), beside another datagram of a flow
that is there, and the kernel's memory for each.
"""
import argparse, json, os, pathlib, resource, shutil, signal, socket, statistics, struct, subprocess, sys, tempfile, time

ROOT = pathlib.Path(__file__).resolve().parent.parent
FLOWS = str(ROOT / "tests/src/flows.py")
VIP, GATEWAY = "198.18.0.100", "198.19.9.100"
VIP6, GATEWAY6 = "2001:db8:18::100", "2001:db8:19::100"
EVENTS = ["move", "kill", "add", "remove", "add-kill", "add-move", "remove-kill", "remove-move"]


def run(*args, check=True, **kw):
    done = subprocess.run(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kw)
    if check and done.returncode:
        raise OSError(f"{' '.join(args)}: {done.stdout.strip()}")
    return done.stdout


def ip(args):
    return run("ip", *args.split())


def until(what, ask, deadline=40):
    end, last = time.time() + deadline, None
    while time.time() < end:
        try:
            answer = ask()
            if answer is not None and answer is not False:
                return answer
        except (OSError, ValueError, KeyError, TypeError, IndexError) as e:
            last = e
        time.sleep(0.05)
    sys.exit(f"not within {deadline} s: {what} ({last})")


class Net:
    """A switch with hosts on it: clients' network 198.18.0.0/24, members' 198.19.9.0/24, and 2001:db8:18::/64 and
    2001:db8:19::/64 beside them."""

    def __init__(self):
        self.prefix, self.names, self.running = f"tk{os.getpid() % 1_000_000}", [], []
        self.switch = self.namespace("sw")
        ip(f"-n {self.switch} link add br0 type bridge")
        ip(f"-n {self.switch} link set br0 up")
        # A switch that tracks connections would be what is measured.
        if os.path.exists("/proc/sys/net/bridge"):
            for what in ("iptables", "ip6tables", "arptables"):
                self.sysctl("sw", f"net/bridge/bridge-nf-call-{what}", 0)

    def namespace(self, name):
        full = self.prefix + name
        ip(f"netns add {full}")
        self.names.append(full)
        ip(f"-n {full} link set lo up")
        return full

    def host(self, name, links):
        """`links`: an address each."""
        space = self.namespace(name)
        for at, address in enumerate(links):
            ip(f"-n {self.switch} link add {name}e{at} type veth peer name eth{at} netns {space}")
            ip(f"-n {self.switch} link set {name}e{at} master br0 up")
            _, network, _, last = address.split(".")
            ip(f"-n {space} addr add {address}/24 dev eth{at}")
            ip(f"-n {space} addr add 2001:db8:{network}::{last}/64 dev eth{at} nodad")
            ip(f"-n {space} link set eth{at} up")
            for of in ("all", f"eth{at}"):
                self.sysctl(name, f"net/ipv4/conf/{of}/send_redirects", 0)
                self.sysctl(name, f"net/ipv4/conf/{of}/accept_redirects", 0)
                self.sysctl(name, f"net/ipv6/conf/{of}/accept_redirects", 0)
        return space

    def sysctl(self, name, key, value):
        run("ip", "netns", "exec", self.prefix + name, "sh", "-c", f"echo {value} > /proc/sys/{key}")

    def within(self, name, *args):
        return ["ip", "netns", "exec", self.prefix + name, *map(str, args)]

    def start(self, name, *args, **kw):
        p = subprocess.Popen(self.within(name, *args), start_new_session=True, stderr=kw.pop("stderr", subprocess.DEVNULL),
                             **{"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, **kw})
        self.running.append(p)
        return p

    def sent_again(self, names):
        total = 0
        for name in names:
            lines = [line.split() for line in run(*self.within(name, "cat", "/proc/net/snmp")).splitlines() if line.startswith("Tcp:")]
            total += int(lines[1][lines[0].index("RetransSegs")])
        return total

    def end(self):
        for p in self.running:
            try:
                os.killpg(p.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            p.wait()
        for name in self.names:
            run("ip", "netns", "del", name, check=False)


class Members:
    def __init__(self, net, count, every):
        self.net, self.names = net, [f"m{n}" for n in range(1, count + 1)]
        for n, name in enumerate(self.names, 1):
            net.host(name, [f"198.19.9.{50 + n}"])
            ip(f"-n {net.prefix}{name} route add default via {GATEWAY}")
            ip(f"-n {net.prefix}{name} -6 route add default via {GATEWAY6}")
            p = net.start(name, sys.executable, FLOWS, "serve", name, "", 9000, stdout=subprocess.PIPE,
                          env={**os.environ, "FLOWS_EVERY": str(every)})
            assert p.stdout.readline() == b"open\n"


class Trestle:
    """Three nodes."""

    targets = [VIP, 90, VIP6, 90]

    def __init__(self, net, dir, a, via="kernel"):
        self.net, self.dir, self.trestle, self.via = net, dir, a.trestle, via
        self.nodes = {}
        run(a.trestle, "keygen", "-o", str(dir / "key"))
        (dir / "first.yaml").write_text(self.config([1, 2, 3]))
        for n in (1, 2, 3):
            net.host(f"n{n}", [f"198.18.0.{10 + n}", f"198.19.9.{10 + n}"])
            net.sysctl(f"n{n}", "net/ipv4/ip_forward", 1)
            net.sysctl(f"n{n}", "net/ipv6/conf/all/forwarding", 1)
            self.spawn(n, ["--bootstrap", "--config", str(dir / "first.yaml")] if n == 1 else ["--join", "198.18.0.11:7400"])
        for n in self.nodes:
            until(f"n{n} sees three voters", lambda: sum(
                v["membership"] == "voter" and v["alive"] and v["seated"] for v in self.status(n)["nodes"]) == 3 and self.status(n)["ready"])
        until("the VIP has an owner", self.owner)
        if via == "kernel":
            for n in self.nodes:
                until(f"n{n} carries by the kernel", lambda: self.shares(n, 3))
        # The first node hands VIPs on when the others have come.
        time.sleep(6)

    def spawn(self, n, how):
        log = (self.dir / f"n{n}.log").open("a")
        self.nodes[n] = self.net.start(
            f"n{n}", self.trestle, "run", "--name", f"n{n}", "--cluster", f"198.18.0.{10 + n}:7400", "--admin", "127.0.0.1:7480",
            "--workers", "1", "--data-dir", self.dir / f"n{n}", "--key-file", self.dir / "key", *how, stderr=log)

    def config(self, members):
        to = ", ".join(f'"198.19.9.{50 + n}:9000", "[2001:db8:19::{50 + n}]:9000"' for n in members)
        kernel = ", kernel: { slots: 65537 }" if self.via == "kernel" else ""
        return (f"vips: {{ front: {{ addresses: [{VIP}/24, {GATEWAY}/24, \"{VIP6}/64\", \"{GATEWAY6}/64\"], ttl: 1s }} }}\n"
                f'listeners: {{ flows: {{ bind: "@front:90", protocol: tcp, via: {self.via}, pool: flows{kernel} }} }}\n'
                f"pools: {{ flows: {{ members: [{to}], health: {{ interval: 1s }} }} }}\n")

    def cli(self, n, *args):
        return run(*self.net.within(f"n{n}", self.trestle, *args, "--admin", "http://127.0.0.1:7480"))

    def status(self, n):
        return json.loads(self.cli(n, "status", "-o", "json"))

    def alive(self):
        return [n for n, p in self.nodes.items() if p.poll() is None]

    def owner(self, but=None):
        for n in self.alive():
            name = self.status(n)["vips"][0].get("owner")
            if name and name != f"n{but}":
                return int(name[1:])

    def shares(self, n, count):
        pools = json.loads(self.cli(n, "kernel", "show", "-o", "json"))["pools"]
        return len([m for pool in pools for m in pool["members"] if m["slots"]]) == 2 * count

    def members(self, members):
        (self.dir / "next.yaml").write_text(self.config(members))
        at = self.alive()[0]
        self.cli(at, "apply", "-f", str(self.dir / "next.yaml"))
        for n in self.alive():
            until(f"n{n} follows", lambda: self.shares(n, len(members)))

    def move(self):
        owner = self.owner()
        to = next(n for n in self.alive() if n != owner)
        began = time.time()
        self.cli(to, "vip", "move", "front", f"n{to}")
        return {"move_ms": round(1000 * (time.time() - began))}

    def kill(self):
        owner = self.owner()
        p = self.nodes[owner]
        for pid in reversed(family(p.pid)):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        began = time.time()
        p.wait()
        until("another node takes the VIP", lambda: self.address_at(but=owner))
        return {"failover_ms": round(1000 * (time.time() - began)), "killed": owner}

    def address_at(self, but):
        return next((n for n in self.alive() if n != but and VIP in ip(f"-n {self.net.prefix}n{n} -o -4 addr show dev eth0")), None)

    def back(self, n):
        self.spawn(n, [])
        until(f"n{n} is back", lambda: self.status(n)["ready"] and self.status(n)["seat"]["seated"])
        if self.via == "kernel":
            until(f"n{n} carries by the kernel", lambda: self.shares(n, 3))


class HaproxyKeepalived:
    """Two machines with HAProxy, and keepalived that moves the addresses; IPv4 alone."""

    targets = [VIP, 90]

    def __init__(self, net, dir, a):
        self.net, self.dir = net, dir
        self.running = {}
        for n in (1, 2):
            net.host(f"n{n}", [f"198.18.0.{10 + n}", f"198.19.9.{10 + n}"])
            net.sysctl(f"n{n}", "net/ipv4/ip_nonlocal_bind", 1)
            net.sysctl(f"n{n}", "net/ipv4/ip_forward", 1)
            self.members([1, 2, 3], [n])
            (dir / f"vrrp{n}").write_text(
                "global_defs { vrrp_garp_master_refresh 5\n }\n"
                f"vrrp_instance front {{ state BACKUP\n interface eth0\n virtual_router_id 7\n priority {150 - 10 * n}\n advert_int 0.3\n"
                f"  version 3\n virtual_ipaddress {{ {VIP}/24 dev eth0\n {GATEWAY}/24 dev eth1\n }} }}\n")
            self.spawn(n)
        until("the address is somewhere", self.owner)

    def spawn(self, n):
        d = self.dir
        self.running[n] = [
            self.net.start(f"n{n}", shutil.which("keepalived"), "-n", "-P", "-f", d / f"vrrp{n}", "-p", d / f"k{n}.pid", "-r", d / f"v{n}.pid"),
            self.net.start(f"n{n}", shutil.which("haproxy"), "-W", "-db", "-f", d / f"haproxy{n}"),
        ]

    def owner(self):
        return next((n for n in (1, 2) if VIP in ip(f"-n {self.net.prefix}n{n} -o -4 addr show dev eth0")), None)

    def members(self, members, nodes=(1, 2)):
        for n in nodes:
            (self.dir / f"haproxy{n}").write_text(
                "global\n maxconn 4000\ndefaults\n mode tcp\n timeout connect 5s\n timeout client 1h\n timeout server 1h\n"
                f"frontend f\n bind {VIP}:90\n default_backend b\nbackend b\n balance roundrobin\n" +
                "".join(f" server m{m} 198.19.9.{50 + m}:9000 check\n" for m in members))
            if n in self.running:
                # A master makes new workers; old ones go on with what they have.
                os.kill(self.running[n][1].pid, signal.SIGUSR2)

    def move(self):
        """Stopped in order, it gives the address away."""
        owner = self.owner()
        self.running[owner][0].terminate()
        until("the other machine has the address", lambda: self.owner() == 3 - owner)
        return {"moved": owner}

    def kill(self):
        owner = self.owner()
        for p in self.running[owner]:
            os.killpg(p.pid, signal.SIGKILL)
        for at in (0, 1):
            ip(f"-n {self.net.prefix}n{owner} link set eth{at} down")
        began = time.time()
        other = f"{self.net.prefix}n{3 - owner}"
        until("the other machine takes the address", lambda: VIP in ip(f"-n {other} -o -4 addr show dev eth0"))
        return {"failover_ms": round(1000 * (time.time() - began))}


def family(pid):
    found = [pid]
    for path in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            for child in path.read_text().split():
                found += family(int(child))
        except OSError:
            pass
    return found


def flows_row(a, product, event):
    net = Net()
    with tempfile.TemporaryDirectory() as tmp:
        try:
            net.host("cl", ["198.18.0.200"])
            members = Members(net, 4, a.every)
            cluster = {"trestle": Trestle, "haproxy": HaproxyKeepalived}[product](net, pathlib.Path(tmp), a)
            for number in range(a.runs):
                client = net.start("cl", sys.executable, FLOWS, "hold", a.connections, *cluster.targets, stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, env={**os.environ, "FLOWS_EVERY": str(a.every)})
                if client.stdout.readline() != b"open\n":
                    sys.exit("the connections can not be opened")
                time.sleep(a.seconds)
                names = ["cl", *members.names]
                before, extra = net.sent_again(names), {}
                for part in event.split("-"):
                    if part in ("add", "remove"):
                        cluster.members([1, 2, 3, 4] if part == "add" else [1, 2])
                        time.sleep(3)
                    elif part != "none":
                        extra.update(getattr(cluster, part)())
                time.sleep(a.seconds)
                again = net.sent_again(names) - before
                said = json.loads(client.communicate()[0])
                print(json.dumps({"row": "flows", "product": product, "event": event, **extra, "again": again, **said}), flush=True)
                if number + 1 < a.runs:
                    if "killed" in extra:
                        cluster.back(extra["killed"])
                    if "add" in event or "remove" in event:
                        cluster.members([1, 2, 3])
        except BaseException:
            for log in pathlib.Path(tmp).glob("*.log"):
                print(f"--- {log.name}", *log.read_text().splitlines()[-20:], sep="\n", file=sys.stderr)
            raise
        finally:
            net.end()


class Straight:
    """No balancer: the client sends to the member's own address, beside it or behind a router."""

    def __init__(self, net, dir, a, routed):
        self.target = ("198.19.9.51", 9000)
        if routed:
            net.host("r", ["198.18.0.11", GATEWAY])
            net.sysctl("r", "net/ipv4/ip_forward", 1)
            ip(f"-n {net.prefix}cl route add 198.19.9.0/24 via 198.18.0.11")
        else:
            # One network for both.
            ip(f"-n {net.prefix}cl addr add 198.19.9.200/24 dev eth0")

    def pids(self):
        return []


class Dnat:
    """One rule by hand, nothing counted or guarded."""

    def __init__(self, net, dir, a):
        self.target = (VIP, 90)
        net.host("r", [VIP, GATEWAY])
        net.sysctl("r", "net/ipv4/ip_forward", 1)
        run(*net.within("r", "nft", "add table ip t; add chain ip t c { type nat hook prerouting priority dstnat; }; "
                        f"add rule ip t c ip daddr {VIP} tcp dport 90 dnat to 198.19.9.51:9000"))

    def pids(self):
        return []


class OneNode:
    """A cluster of one node, which holds the VIP."""

    def __init__(self, net, dir, a, via, protocol="tcp", idle="", port=90, member="198.19.9.51"):
        self.target, self.dir = (VIP, port), dir
        net.host("n1", ["198.18.0.11", "198.19.9.11"])
        net.sysctl("n1", "net/ipv4/ip_forward", 1)
        run(a.trestle, "keygen", "-o", str(dir / "key"))
        (dir / "config.yaml").write_text(
            f"vips: {{ front: {{ addresses: [{VIP}/24, {GATEWAY}/24] }} }}\n"
            f'listeners: {{ one: {{ bind: "@front:{port}", protocol: {protocol}, via: {via}, pool: one{idle} }} }}\n'
            f'pools: {{ one: {{ members: ["{member}:9000"], health: off }} }}\n')
        self.p = net.start("n1", a.trestle, "run", "--name", "n1", "--cluster", "198.18.0.11:7400", "--admin", "127.0.0.1:7480",
                           "--workers", "1", "--data-dir", dir / "data", "--key-file", dir / "key", "--bootstrap",
                           "--config", dir / "config.yaml", stderr=(dir / "n1.log").open("a"))
        until("the VIP is held", lambda: VIP in ip(f"-n {net.prefix}n1 -o -4 addr show dev eth0"))

    def pids(self):
        return family(self.p.pid)


class OneDirect(OneNode):
    """The member stands on the clients' network, and has the VIP."""

    def __init__(self, net, dir, a):
        net.sysctl("m", "net/ipv4/conf/all/arp_ignore", 1)
        net.sysctl("m", "net/ipv4/conf/all/arp_announce", 2)
        ip(f"-n {net.prefix}m addr add 198.18.0.51/24 dev eth0")
        ip(f"-n {net.prefix}m addr add {VIP}/32 dev lo")
        super().__init__(net, dir, a, "kernel", idle=", kernel: { mode: dsr }", port=9000, member="198.18.0.51")


class OneHaproxy:
    def __init__(self, net, dir, a):
        self.target = ("198.18.0.11", 90)
        net.host("n1", ["198.18.0.11", "198.19.9.11"])
        (dir / "haproxy").write_text(
            "global\n nbthread 1\ndefaults\n mode tcp\n timeout connect 5s\n timeout client 1m\n timeout server 1m\n"
            "frontend f\n bind 198.18.0.11:90\n default_backend b\nbackend b\n server m 198.19.9.51:9000\n")
        self.p = net.start("n1", shutil.which("haproxy"), "-db", "-f", dir / "haproxy")

    def pids(self):
        return family(self.p.pid)


WAYS = {
    "direct": lambda *to: Straight(*to, routed=False),
    "routed": lambda *to: Straight(*to, routed=True),
    "dnat": Dnat,
    "kernel": lambda *to: OneNode(*to, via="kernel"),
    "dsr": OneDirect,
    "proxy": lambda *to: OneNode(*to, via="proxy"),
    "haproxy": OneHaproxy,
}


def micros(pids):
    """CPU time of processes, by their threads."""
    total = 0
    for pid in pids:
        for task in pathlib.Path(f"/proc/{pid}/task").glob("*/schedstat"):
            try:
                total += int(task.read_text().split()[0]) // 1000
            except (OSError, IndexError):
                pass
    return total


def load_member(port):
    """One connection after the other: `B` and a number asks for so many MiB, anything else for an echo."""
    listener, chunk = socket.create_server(("", port), backlog=1024), bytes(1 << 20)
    while True:
        s, _ = listener.accept()
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            data = s.recv(64)
            if data[:1] == b"B":
                for _ in range(int(data[1:])):
                    s.sendall(chunk)
            elif data:
                s.sendall(data)
                s.recv(1)
        except OSError:
            pass
        s.close()


def load_client(host, port):
    """Told what to do by lines: `bulk MIB` or `new COUNT`; says `done`."""
    into = bytearray(1 << 20)
    print("ready", flush=True)
    for line in sys.stdin:
        what, count = line.split()
        for _ in range(int(count) if what == "new" else 1):
            with socket.create_connection((host, port), 10) as s:
                s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if what == "new":
                    s.sendall(b"x" * 64)
                    assert len(s.recv(64)) == 64
                    continue
                s.sendall(b"B" + count.encode())
                left = int(count) << 20
                while left > 0:
                    read = s.recv_into(into)
                    if not read:
                        sys.exit("the connection ended early")
                    left -= read
        print("done", flush=True)


def cost(a):
    units = {"bulk": ("GiB", a.gib * 1024, a.gib), "new": ("connection", a.new, a.new)}
    spent = {(row, way): [] for row in units for way in WAYS}
    for number in range(a.rounds):
        for way, make in WAYS.items():
            net = Net()
            with tempfile.TemporaryDirectory() as tmp:
                try:
                    net.host("cl", ["198.18.0.200"])
                    net.host("m", ["198.19.9.51"])
                    if way in ("routed", "dnat", "kernel"):
                        ip(f"-n {net.prefix}m route add default via {GATEWAY}")
                    between = make(net, pathlib.Path(tmp), a)
                    member = net.start("m", sys.executable, __file__, "load-member", 9000)
                    client = net.start("cl", sys.executable, __file__, "load-client", *between.target, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                    client.stdout.readline()

                    def work(what, count):
                        client.stdin.write(f"{what} {count}\n".encode())
                        client.stdin.flush()
                        if client.stdout.readline() != b"done\n":
                            raise OSError(f"{way}: the load has ended")

                    until("a connection is answered", lambda: run(*net.within("cl", "bash", "-c", f"echo x > /dev/tcp/{between.target[0]}/{between.target[1]}")) == "")
                    work("new", 200)
                    softirq = [int(p.parent.name) for p in pathlib.Path("/proc").glob("[0-9]*/comm") if p.read_text().startswith("ksoftirqd")]
                    for row, (_, ask, count) in units.items():
                        pids = lambda: family(member.pid) + family(client.pid) + between.pids() + softirq
                        before = micros(pids())
                        work(row, ask)
                        spent[row, way].append((micros(pids()) - before) / count)
                except BaseException:
                    for log in pathlib.Path(tmp).glob("*.log"):
                        print(f"--- {log.name}", *log.read_text().splitlines()[-20:], sep="\n", file=sys.stderr)
                    raise
                finally:
                    net.end()
    for row, (unit, _, _) in units.items():
        median = {way: statistics.median(spent[row, way]) for way in WAYS}
        for way, value in median.items():
            above, routed = value - median["direct"], median["routed"] - median["direct"]
            print(json.dumps({"row": row, "way": way, "micros": round(value, 1), "per": unit, "of_routed": round(value / median["routed"], 2),
                              "above": round(above, 1), "above_of_routed": round(above / routed, 2) if routed > 0 else None,
                              "rounds": [round(v, 1) for v in spent[row, way]]}), flush=True)


def send_flows(first, count):
    """Datagrams of the flows `first` to `first + count`, each of an address and port of its own, straight from this
    process's interface: CPU time of one, in microseconds."""
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    frames = []
    for number in range(first, first + count):
        source = (198 << 24) + (18 << 16) + (1 << 15) + number // 40
        udp = struct.pack("!HHHH", 1024 + number % 40 * 1500, 90, 8 + 16, 0) + bytes(16)
        header = struct.pack("!BBHHHBBHI4s", 0x45, 0, 20 + len(udp), 0, 0, 64, socket.IPPROTO_UDP, 0, source, socket.inet_aton(VIP))
        frames.append(header + udp)
    began = time.process_time()
    for frame in frames:
        s.sendto(frame, (VIP, 0))
    return 1e6 * (time.process_time() - began) / count


def kernel_memory():
    """What the kernel has allocated for itself and can't give back."""
    lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("SUnreclaim")).split()[1])


def tracked(a):
    most = pathlib.Path("/proc/sys/net/netfilter/nf_conntrack_max")
    before = most.read_text()
    net = Net()
    with tempfile.TemporaryDirectory() as tmp:
        try:
            most.write_text(str(max(int(before), a.flows + 100_000)))
            net.host("cl", ["198.18.0.200"])
            net.host("m", ["198.19.9.51"])
            ip(f"-n {net.prefix}m route add default via {GATEWAY}")
            node = OneNode(net, pathlib.Path(tmp), a, via="kernel", protocol="udp", idle=", udp: { idle: 1h }")
            net.start("m", sys.executable, __file__, "load-sink", 9000)
            client = net.start("cl", sys.executable, __file__, "load-flows", stdin=subprocess.PIPE, stdout=subprocess.PIPE)

            def send(first, count):
                client.stdin.write(f"{first} {count}\n".encode())
                client.stdin.flush()
                return float(client.stdout.readline())

            count = lambda: int(run(*net.within("n1", "cat", "/proc/sys/net/netfilter/nf_conntrack_count")))
            until("a flow is carried", lambda: send(0, 1) > 0 and count() > 0)
            memory, done = kernel_memory(), 1
            for level in [n for n in (1_000, 10_000, 100_000, 1_000_000) if n <= a.flows]:
                while done < level:
                    more = min(20_000, level - done)
                    send(done, more)
                    done += more
                new = statistics.median(send(done + n * 1_000, 1_000) for n in range(10))
                old = statistics.median(send(n * 90, 90 if level < 10_000 else 900) for n in range(10))
                done += 10_000
                entries = count()
                print(json.dumps({"row": "tracked", "flows": entries, "new_micros": round(new, 2), "known_micros": round(old, 2),
                                  "bytes_each": round((kernel_memory() - memory) / entries)}), flush=True)
            began = time.time()
            status = json.loads(run(*net.within("n1", a.trestle, "status", "-o", "json", "--admin", "http://127.0.0.1:7480")))
            print(json.dumps({"row": "status", "ms": round(1000 * (time.time() - began)), "rss_mib": rss(node.p.pid),
                              "warnings": status.get("warnings", [])}), flush=True)
        finally:
            net.end()
            most.write_text(before)


def rss(pid):
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return round(int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024)


def load_sink(port):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("", port))
    time.sleep(3600)


def load_flows():
    for line in sys.stdin:
        first, count = map(int, line.split())
        print(send_flows(first, count), flush=True)


def flows(a):
    for event in a.events.split(","):
        for product in a.products.split(","):
            flows_row(a, product, event)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("what", choices=["flows", "cost", "tracked"])
    ap.add_argument("--connections", type=int, default=1000)
    ap.add_argument("--every", type=float, default=0.5, help="seconds between a connection's records, each way")
    ap.add_argument("--seconds", type=float, default=3, help="before and after what happens")
    ap.add_argument("--events", default=",".join(EVENTS))
    ap.add_argument("--products", default="trestle,haproxy")
    ap.add_argument("--runs", type=int, default=1, help="with the same cluster")
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--gib", type=int, default=2)
    ap.add_argument("--new", type=int, default=4000)
    ap.add_argument("--flows", type=int, default=1_000_000)
    ap.add_argument("--trestle", default=str(ROOT / "target/release/trestle"))
    a = ap.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (16384, max(16384, resource.getrlimit(resource.RLIMIT_NOFILE)[1])))
    if os.geteuid():
        sys.exit("namespaces need root")
    {"flows": flows, "cost": cost, "tracked": tracked}[a.what](a)


# What the script starts of itself in namespaces.
PARTS = {"load-member": lambda port: load_member(int(port)), "load-client": lambda host, port: load_client(host, int(port)),
         "load-sink": lambda port: load_sink(int(port)), "load-flows": load_flows}
if sys.argv[1:] and sys.argv[1] in PARTS:
    PARTS[sys.argv[1]](*sys.argv[2:])
else:
    main()
