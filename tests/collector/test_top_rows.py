"""Flows as the rows of `kcompat top`: sums, rates, order and filter."""

from hypothesis import given
from hypothesis import strategies as st

from collector.record import Record
from collector.top_rows import SORTS, VIEWS, arranged, duration, rows, scaled
from kcompat import cli_top


def flow(process="curl", pid="7", peer="10.0.0.2", port="80", read=0, written=0, rtt=0, retransmits=0, **tags):
    tags = {"process_name": process, "pid": pid, "src_ip": "10.0.0.1", "src_port": "*", "dst_ip": peer,
            "dst_port": port, "direction": "outgoing", "transport": "tcp"} | tags
    return Record("netflow", tags, {"bytes_read": read, "bytes_written": written, "rtt": rtt, "tcp_established": 1,
                                    "retransmits": retransmits, "tcp_closed": 0}, 1)


def test_flows_of_one_process_and_of_one_peer_are_added_up():
    records = [flow(read=100, rtt=10), flow(port="443", written=300, rtt=30, retransmits=2),
               flow("nginx", "9", peer="10.0.0.3", read=50)]

    by = {view: arranged(rows(records, view, 2.0), "total") for view in VIEWS}

    assert [row.peer for row in by["flow"]] == ["10.0.0.2:443", "10.0.0.2:80", "10.0.0.3:80"]
    (curl, nginx), (peer, _) = by["process"], by["peer"]
    assert (curl.process, curl.pid, curl.flows, curl.read_rate, curl.write_rate) == ("curl", "7", 2, 50.0, 150.0)
    assert (curl.rtt_us, curl.retransmits, curl.established, nginx.rtt_us) == (20.0, 2, 2, 0)
    assert (peer.peer, peer.flows, peer.process) == ("10.0.0.2", 2, "")


def test_pods_and_names_stand_for_addresses():
    named = flow(dst_domain="example.org")
    pod = flow(dst_domain="example.org", dst_k8s_pod_name="web-1")
    service = flow(dst_k8s_pod_name="N/A", dst_k8s_service_name="front")
    v6 = flow(peer="fd00::1")

    assert [rows([one], "flow", 1)[0].peer for one in (named, pod, service, v6)] == [
        "example.org:80", "web-1:80", "front:80", "[fd00::1]:80"]


def test_escape_sequences_do_not_reach_the_terminal():
    assert rows([flow(process="\x1b[31mx")], "flow", 1)[0].process == "?[31mx"


def test_a_filter_looks_at_processes_and_peers_whatever_their_case():
    made = rows([flow("Nginx"), flow("curl", peer="10.9.9.9")], "flow", 1)

    assert [row.process for row in arranged(made, "total", having="NGINX")] == ["Nginx"]
    assert [row.process for row in arranged(made, "total", having="10.9.9")] == ["curl"]


@given(st.lists(st.builds(flow, st.sampled_from("ab"), st.sampled_from("12"), st.sampled_from(["10.0.0.1", "10.0.0.2"]),
                          read=st.integers(0, 1 << 40), written=st.integers(0, 1 << 40))), st.sampled_from(list(SORTS)))
def test_no_byte_is_lost_in_any_view_and_the_greatest_is_first(records, sort):
    for view in VIEWS:
        made = arranged(rows(records, view, 1.0), sort)

        assert sum(row.flows for row in made) == len(records)
        assert sum(row.total_rate for row in made) == sum(
            r.fields["bytes_read"] + r.fields["bytes_written"] for r in records)
        values = [SORTS[sort](row) for row in made]
        assert values == sorted(values, reverse=True)


def test_numbers_fit_their_columns():
    assert [scaled(n) for n in (0, 999, 1024, 12_000, 1 << 20)] == ["0", "999", "1.0K", "12K", "1.0M"]
    assert [duration(us) for us in (0, 21, 1500, 2_500_000)] == ["", "21us", "1.5ms", "2.5s"]
    assert max(len(scaled(10.0 ** n)) for n in range(18)) <= 5


def test_the_command_offers_what_there_is():
    assert cli_top.VIEWS == VIEWS and tuple(SORTS) == cli_top.SORTS
