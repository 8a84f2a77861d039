"""Traffic of a process of its own in a network namespace of its own, which says what it did: `python FILE NAME NET`.

Each scenario is a generator: what it yields is printed as JSON, and it goes on when a line comes in. Addresses are
10.NET.x.y and fdNET::1, so that nobody else's records are taken for ours. Only the standard library and pyroute2.
"""

import array
import fcntl
import json
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from guessers.namespace import Netns, add_ipv6, wait_until_bindable
from tests.kernel.tcp_states import all_closed, states, wait_for

# An old kernel in a VM has no secrets to give for minutes after its boot: what is sent here, and what pyroute2 imports,
# needs none.
os.urandom = random.Random().randbytes

NET = int(sys.argv[2]) if len(sys.argv) > 2 else 0
MPTCP = 262


def v4(host):
    return f"10.{NET}.0.{host}"


def v6():
    address = f"fd{NET:02x}::1"
    add_ipv6(address)
    if not wait_until_bindable(address, 10):
        raise OSError(f"{address} stays tentative")
    return address


def own_network():
    """10.0.0.0/8 is local: an address of lo brings the whole network of its class."""
    Netns.fresh()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("<16sHH4s8x", b"lo:1", socket.AF_INET, 0, socket.inet_aton(v4(1)))
        fcntl.ioctl(control, 0x8916, request)  # SIOCSIFADDR


def listener(address, port=0, family=socket.AF_INET, protocol=0, backlog=128):
    made = socket.socket(family, socket.SOCK_STREAM, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((address, port))
    made.listen(backlog)
    return made


def pair(address=None, family=socket.AF_INET, source=None, protocol=0):
    with listener(address or v4(2), 0, family, protocol) as one:
        client = socket.socket(family, socket.SOCK_STREAM, protocol)
        client.bind((source or (v4(1) if family == socket.AF_INET else address), 0))
        client.connect(one.getsockname()[:2])
        server, _ = one.accept()
    return client, server


def exchange(client, server, up, down):
    """`up` bytes there and `down` bytes back, with nothing left on the way."""
    for sender, receiver, size in ((client, server, up), (server, client, down)):
        writer = threading.Thread(target=sender.sendall, args=(os.urandom(size),))
        writer.start()
        while size:
            size -= len(receiver.recv(min(size, 30_000)))
        writer.join()


def truth(sock):
    """What the kernel's own counters say of a connection (struct tcp_info), and ss of its owner."""
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    rtt, rttvar = struct.unpack_from("<II", raw, 68)
    return {"local": sock.getsockname()[:2], "remote": sock.getpeername()[:2],
            "received": struct.unpack_from("<Q", raw, 128)[0], "rtt": rtt, "rttvar": rttvar,
            "retransmits": struct.unpack_from("<I", raw, 100)[0], "ss": ss(sock)}


def ss(sock):
    if not shutil.which("ss"):
        return None
    local, remote = sock.getsockname(), sock.getpeername()
    return subprocess.run(["ss", "-Htnp", "sport", "=", str(local[1]), "and", "dport", "=", str(remote[1])],
                          capture_output=True, text=True).stdout


def own(**more):
    return {"pid": os.getpid(), "comm": Path("/proc/self/comm").read_text().strip(), **more}


def plain():
    client, server = pair()
    exchange(client, server, 100_001, 50_003)
    time.sleep(0.1)
    yield own(client=truth(client), server=truth(server))
    exchange(client, server, 10, 20)
    client.close()
    server.close()
    all_closed()
    yield own()


def ipv6():
    client, server = pair(v6(), socket.AF_INET6)
    exchange(client, server, 7001, 3001)
    facts = own(client=truth(client), server=truth(server))
    client.close()
    server.close()
    all_closed()
    yield facts


def dual_stack():
    with socket.socket(socket.AF_INET6) as one:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        one.bind(("::", 0))
        one.listen()
        client = socket.socket(socket.AF_INET6)
        client.bind((f"::ffff:{v4(1)}", 0))
        client.connect((f"::ffff:{v4(2)}", one.getsockname()[1]))
        server, _ = one.accept()
        port = one.getsockname()[1]
    exchange(client, server, 4001, 2001)
    client.close()
    server.close()
    all_closed()
    yield own(port=port)


def sent_by_the_kernel():
    """sendfile(2) one way; what arrives is taken out by splice(2) and never seen by its reader."""
    client, server = pair()
    size = 300_007
    with open("/dev/null", "wb") as sink, Path(f"/tmp/kcompat-{os.getpid()}").open("w+b") as page:  # noqa: PTH123
        Path(page.name).unlink()
        page.write(os.urandom(size))
        page.flush()
        page.seek(0)
        into, outof = os.pipe()[::-1]

        def take():
            left = size
            while left:
                got = os.splice(server.fileno(), into, min(left, 60_000))
                left -= got
                while got:
                    got -= os.splice(outof, sink.fileno(), got)

        taker = threading.Thread(target=take)
        taker.start()
        client.sendfile(page)
        taker.join()
    facts = own(size=size, client=truth(client), server=truth(server))
    client.close()
    server.close()
    all_closed()
    yield facts


def refused():
    with socket.socket() as one, suppress(ConnectionRefusedError):
        one.bind((v4(1), 0))
        one.connect((v4(2), 9))
        raise AssertionError("somebody listens on the discard port")
    yield own()


def half_closed():
    client, server = pair()
    client.sendall(b"q" * 100)
    client.shutdown(socket.SHUT_WR)
    while server.recv(1000):
        pass
    wait_for(lambda: "08" in states())  # CLOSE_WAIT
    yield own()
    server.sendall(b"a" * 70_001)
    server.close()
    got = 0
    while data := client.recv(5000):
        got += len(data)
    client.close()
    all_closed()
    yield own(got=got)


def reset():
    client, server = pair()
    exchange(client, server, 100, 200)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.close()
    wait_for(lambda: "01" not in states())
    with suppress(ConnectionResetError):
        client.recv(10)
    client.close()
    all_closed()
    yield own()


def old():
    """Connections, and a server of datagrams, that were there before the collector."""
    with listener(v4(2)) as one:
        client = socket.socket()
        client.bind((v4(1), 0))
        client.connect(one.getsockname())
        server, _ = one.accept()
    _quiet, quiet_server = pair(v4(3), source=v4(4))
    half, half_server = pair(v4(5), source=v4(6))
    kept = listener(v4(7), 7007)
    behind = socket.create_connection((v4(7), 7007), source_address=(v4(8), 0))
    before_it, _ = kept.accept()
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind((v4(2), 5353))
    asker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    asker.bind((v4(1), 0))
    asker.sendto(b"before", (v4(2), 5353))
    _, peer = datagrams.recvfrom(100)
    exchange(client, server, 5000, 3000)
    half.shutdown(socket.SHUT_WR)
    half_server.recv(10)
    wait_for(lambda: "08" in states())
    yield own(port=kept.getsockname()[1])
    exchange(client, server, 77, 33)
    half_server.sendall(b"h" * 1234)
    half_server.close()
    while half.recv(5000):
        pass
    half.close()
    exchange(behind, before_it, 11, 22)
    datagrams.sendto(b"late answer", peer)
    asker.recv(100)
    # Closed by the peer, with a reset: no process of the other side has a hand in it.
    quiet_server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    quiet_server.close()
    for sock in (client, server, behind, before_it):
        sock.close()
    wait_for(lambda: not set(states()) - {"06", "0A", "07"})
    yield own()


def forked():
    """A server that forks for each connection and lets both hold it; the reader of one is the child."""
    client, server = pair()
    child = os.fork()
    if not child:
        server.recv(1000)
        server.sendall(b"c" * 500)
        os._exit(0)
    client.sendall(b"p" * 100)
    exact(client, 500)
    os.waitpid(child, 0)
    client.sendall(b"p" * 11)
    exact(server, 11)
    client.close()
    server.close()
    all_closed()
    yield own(child=child)


def exact(sock, size):
    while size:
        size -= len(sock.recv(size))


def passed():
    """A descriptor goes to another process, which goes on with it; the first one closes its own."""
    client, server = pair()
    exchange(client, server, 1000, 10)
    ours, theirs = socket.socketpair()
    child = os.fork()
    if not child:
        server.close()
        client.close()
        _, control, _, _ = theirs.recvmsg(1, socket.CMSG_SPACE(4))
        got = socket.socket(fileno=array.array("i", control[0][2])[0])
        got.sendall(b"x" * 2000)
        got.close()
        os._exit(0)
    ours.sendmsg([b"f"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [client.fileno()]))])
    client.close()
    exact(server, 2000)
    os.waitpid(child, 0)
    server.close()
    all_closed()
    yield own(child=child)


def many():
    count = 500
    with listener(v4(2)) as one:
        for _ in range(count):
            client = socket.socket()
            client.connect(one.getsockname())
            server, _ = one.accept()
            client.sendall(b"n" * 30)
            exact(server, 30)
            server.sendall(b"m" * 50)
            exact(client, 50)
            client.close()
            server.close()
        port = one.getsockname()[1]
    all_closed()
    yield own(count=count, port=port)


def datagrams():
    with (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
          socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound,
          socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connected):
        server.bind((v4(2), 0))
        bound.bind((v4(3), 0))
        connected.bind((v4(4), 0))
        connected.connect(server.getsockname())
        for size in (1, 500, 1400):
            bound.sendto(b"d" * size, server.getsockname())
            _, peer = server.recvfrom(2000)
            server.sendto(b"r" * (size * 2), peer)
            bound.recvfrom(3000)
            connected.send(b"e" * size)
            server.recv(2000, socket.MSG_PEEK)
            _, peer = server.recvfrom(2000)
            server.sendto(b"s" * 7, peer)
            connected.recv(100)
        yield own(port=server.getsockname()[1])


def rules(text):
    """Loads nftables rules; why not, where this machine cannot."""
    if not shutil.which("nft"):
        return "no nft here: apt-get install nftables"
    told = subprocess.run(["nft", "-f", "-"], input=text, text=True, capture_output=True)
    return told.stderr.strip()


def tracked(protocol):
    """(original destination and port, reply source and port) of every tracked connection, as pyroute2 reads them."""
    from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket

    found = []
    with NFCTSocket() as tracker:
        for one in tracker.dump():
            sides = [(side.get_attr("CTA_TUPLE_IP"), side.get_attr("CTA_TUPLE_PROTO"))
                     for side in (one.get_attr("CTA_TUPLE_ORIG"), one.get_attr("CTA_TUPLE_REPLY"))]
            if sides[0][1].get_attr("CTA_PROTO_NUM") == protocol:
                (first, first_port), (reply, reply_port) = sides
                found.append((ip_of(first, "DST"), first_port.get_attr("CTA_PROTO_DST_PORT"),
                              ip_of(reply, "SRC"), reply_port.get_attr("CTA_PROTO_SRC_PORT")))
    return found


def ip_of(side, end):
    return side.get_attr(f"CTA_IP_V4_{end}") or side.get_attr(f"CTA_IP_V6_{end}")


NAT = """
table ip kcompat {{
  chain out {{
    type nat hook output priority -100;
    ip daddr {virtual} tcp dport 80 dnat to {real}:8080
    ip daddr {virtual} udp dport 53 dnat to {real}:5300
    {more}
  }}
  chain post {{
    type nat hook postrouting priority 100;
    ip daddr {masked} snat to {mask}
  }}
  chain seen {{
    type nat hook input priority 100;
  }}
}}
"""


def nat_rules(more=""):
    """Loads them, with one more; why not, where this kernel or this machine cannot."""
    return rules(NAT.format(virtual=v4(80), real=v4(2), masked=v4(90), mask=v4(91), more=more))


def nat():
    if fault := nat_rules():
        yield {"skip": fault}
        return
    with listener(v4(2), 8080) as one, listener(v4(90), 9000) as masked:
        client = socket.create_connection((v4(80), 80), source_address=(v4(1), 0))
        server, _ = one.accept()
        exchange(client, server, 1234, 4321)
        behind = socket.create_connection((v4(90), 9000), source_address=(v4(1), 0))
        before_it, seen = masked.accept()
        exchange(behind, before_it, 55, 66)
        with (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as names,
              socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker):
            names.bind((v4(2), 5300))
            asker.bind((v4(1), 0))
            asker.sendto(b"q" * 21, (v4(80), 53))
            _, peer = names.recvfrom(100)
            names.sendto(b"a" * 42, peer)
            asker.recvfrom(100)
            yield own(tracked=tracked(6) + tracked(17), seen=seen[0])
        exchange(client, server, 1, 2)
        for sock in (client, server, behind, before_it):
            sock.close()
    all_closed()
    yield own()


def nat_many():
    """Short connections to one address, each to one of two servers behind it."""
    in_turn = f"numgen inc mod 2 map {{ 0 : {v4(3)}, 1 : {v4(4)} }}"  # from 4.9 on
    if fault := nat_rules(f"ip daddr {v4(81)} tcp dport 80 dnat to {in_turn}"):
        yield {"skip": fault}
        return
    yield own()
    with listener("0.0.0.0", 80) as one:
        for _ in range(3):
            went = {v4(3): 0, v4(4): 0}
            for _ in range(20):
                client = socket.create_connection((v4(81), 80), source_address=(v4(1), 0))
                server, _ = one.accept()
                went[server.getsockname()[0]] += 1
                exchange(client, server, 10, 20)
                client.close()
                server.close()
            all_closed()
            yield own(went=went)


def multipath():
    try:
        client, server = pair(protocol=MPTCP)
    except OSError as error:
        yield {"skip": f"no MPTCP: {error.strerror}"}
        return
    exchange(client, server, 40_000, 20_000)
    client.close()
    server.close()
    all_closed()
    yield own()


def elsewhere():
    """In a pid namespace of its own, where its pid is another number."""
    client, server = pair()
    exchange(client, server, 64, 32)
    told = own(numbers=next(line.split()[1:] for line in Path("/proc/self/status").read_text().splitlines()
                            if line.startswith("NSpid")))
    client.close()
    server.close()
    all_closed()
    yield told


def main():
    own_network()
    for told in globals()[sys.argv[1]]():
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
        if not sys.stdin.readline():
            return


if __name__ == "__main__":
    main()
