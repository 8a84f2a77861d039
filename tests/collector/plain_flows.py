"""The rules of netflow once more, plainly: a dictionary of tuples, a record made of each; slow, to compare with."""

from collector.addresses import describe, star_ports
from collector.record import Record


def aggregate(deltas, options, time_ns, dropped, name_of, target_of, process_of):
    exclude, flows, who, more = options.exclude, {}, {}, {}
    for delta in deltas:
        (local, local_port, remote, remote_port, transport, netns, pid, comm, direction, read, written, *tcp) = delta
        tcp = tcp if transport == "tcp" else [0] * 6
        retransmits, rtt, rtt_var, samples, established, closed = tcp
        if not (read or written or retransmits or established or closed):
            dropped["unchanged"] += 1
            continue
        if not local_port or not remote_port:
            dropped["port"] += 1
            continue
        if fault := _fault(local, options) or _fault(remote, options):
            dropped[fault] += 1
            continue
        if (pid, comm) not in who:
            who[pid, comm], tags = process_of(pid, comm)
            if tags:
                more[pid, who[pid, comm]] = tags
        name = who[pid, comm]
        if (local_port in exclude.ports or remote_port in exclude.ports or name in exclude.processes
                or direction in exclude.directions):
            dropped["excluded"] += 1
            continue
        src_port, dst_port = star_ports(local_port, remote_port, direction, options.ephemeral_port)
        target = (target_of(netns, transport, local, local_port, remote, remote_port)
                  if direction == "outgoing" else None)
        key = (local, src_port, remote, dst_port, transport, netns, pid, name, direction, target)
        if key not in flows and len(flows) >= options.max_flows:
            dropped["overflow"] += 1
            continue
        sums = flows.setdefault(key, [0] * 8)
        for at, count in enumerate((read, written, retransmits, established, closed, rtt, rtt_var, samples)):
            sums[at] += count
    return [Record("netflow", {**_tags(key, options.host, name_of), **more.get(key[6:8], {})}, _fields(key[4], sums),
                   time_ns) for key, sums in flows.items()]


def _fault(raw, options):
    address = describe(raw)
    if address.is_zero:
        return "address"
    if address.type == "loopback" and not options.loopback:
        return "loopback"
    if (any(cidr.holds(raw) for cidr in options.exclude.cidrs)
            or (address.family == "IPv6" and not options.ipv6)):
        return "excluded"
    return ""


def _tags(key, host, name_of):
    local, src_port, remote, dst_port, transport, netns, pid, process_name, direction, target = key
    src, dst, name = describe(local), describe(remote), name_of(netns, remote)
    return {"host": host, "source": "netflow", "direction": direction, "src_ip": src.text, "src_port": src_port,
            "src_ip_type": src.type, "dst_ip": dst.text, "dst_port": dst_port, "dst_ip_type": dst.type,
            "dst_nat_ip": describe(target[0]).text if target else "N/A",
            "dst_nat_port": str(target[1]) if target else "N/A", "pid": str(pid),
            "process_name": process_name or "N/A", "transport": transport, "family": dst.family,
            **({"dst_domain": name} if name else {})}


def _fields(transport, sums):
    read, written, retransmits, established, closed, rtt, rtt_var, samples = sums
    if transport != "tcp":
        return {"bytes_read": read, "bytes_written": written}
    return {"bytes_read": read, "bytes_written": written, "retransmits": retransmits,
            "rtt": rtt // samples if samples else 0, "rtt_var": rtt_var // samples if samples else 0,
            "tcp_closed": closed, "tcp_established": established}
