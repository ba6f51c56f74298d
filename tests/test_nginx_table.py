"""Every directive of the nginx files: why it is there, nginx's default, and the test that sees it at work.

The files carry the first two as comments; the third is the table below.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.nginx_rig import FOLDER

FILES = ["nginx.conf", "containers/upstream.conf", "containers/door.conf", "containers/tls.conf", "exporter/metrics.conf"]
TESTS = Path(__file__).parent

FRONT, CLIENTS, WORKERS, NAMES, TLS = (f"test_{name}.py" for name in (
    "fleet_front", "nginx_clients", "nginx_workers", "nginx_names", "nginx_tls"))  # fmt: skip

SEEN_BY = {
    # processes and their limits
    "worker_processes": (CLIENTS, "test_there_is_room_for_thousands_of_connections"),
    "worker_rlimit_nofile": (CLIENTS, "test_there_is_room_for_thousands_of_connections"),
    "worker_connections": (CLIENTS, "test_there_is_room_for_thousands_of_connections"),
    "worker_shutdown_timeout": (WORKERS, "test_a_stuck_answer_does_not_keep_an_old_process_for_ever"),
    "pid": (CLIENTS, "test_everything_nginx_writes_is_in_its_prefix"),
    "client_body_temp_path": (CLIENTS, "test_usual_bodies_never_touch_the_disk_and_large_ones_stay_in_the_prefix"),
    "proxy_temp_path": (CLIENTS, "test_everything_nginx_writes_is_in_its_prefix"),
    "fastcgi_temp_path": (CLIENTS, "test_everything_nginx_writes_is_in_its_prefix"),
    "uwsgi_temp_path": (CLIENTS, "test_everything_nginx_writes_is_in_its_prefix"),
    "scgi_temp_path": (CLIENTS, "test_everything_nginx_writes_is_in_its_prefix"),
    # clients
    "server_tokens": (CLIENTS, "test_the_version_of_nginx_is_not_told"),
    "client_header_timeout": (CLIENTS, "test_a_head_that_trickles_is_cut_off"),
    "client_body_timeout": (CLIENTS, "test_a_body_that_stops_is_cut_off_and_one_that_trickles_is_not"),
    "send_timeout": (CLIENTS, "test_a_client_that_does_not_read_is_cut_off"),
    "keepalive_timeout": (CLIENTS, "test_an_idle_client_connection_is_kept_and_then_closed"),
    "keepalive_requests": (CLIENTS, "test_one_connection_serves_more_than_a_thousand_requests"),
    "keepalive_min_timeout": (FRONT, "test_reloads_under_load_lose_nothing"),
    "client_max_body_size": (FRONT, "test_a_body_above_the_limit_is_refused"),
    "client_body_buffer_size": (CLIENTS, "test_usual_bodies_never_touch_the_disk_and_large_ones_stay_in_the_prefix"),
    "large_client_header_buffers": (FRONT, "test_not_http_and_long_headers_have_problem_documents"),
    "lingering_timeout": (CLIENTS, "test_a_refused_body_may_trickle_in_for_two_seconds"),
    "merge_slashes": (CLIENTS, "test_a_path_means_what_it_says"),
    "limit_req_zone": (CLIENTS, "test_a_runaway_client_gets_429_and_when_to_come_back"),
    "limit_req": (CLIENTS, "test_a_runaway_client_gets_429_and_when_to_come_back"),
    "limit_req_status": (CLIENTS, "test_a_runaway_client_gets_429_and_when_to_come_back"),
    "listen": (FRONT, "test_nginx_answers_healthz_itself"),
    "ssl_certificate": (TLS, "test_a_request_over_tls_is_forwarded_as_https"),
    "ssl_certificate_key": (TLS, "test_a_request_over_tls_is_forwarded_as_https"),
    "http2": (TLS, "test_a_request_over_tls_is_forwarded_as_https"),
    "ssl_protocols": (TLS, "test_old_protocols_are_refused"),
    "ssl_session_cache": (TLS, "test_a_client_that_comes_again_is_known"),
    "ssl_session_timeout": (TLS, "test_a_client_that_comes_again_is_known"),
    # workers
    "upstream": (WORKERS, "test_least_conn_counts_over_all_processes"),
    "upstream zone": (WORKERS, "test_least_conn_counts_over_all_processes"),
    "upstream least_conn": (FRONT, "test_shares_are_fair_and_a_slow_worker_gets_less"),
    "upstream server": (FRONT, "test_a_worker_that_fails_fast_is_left_out"),
    "upstream keepalive": (WORKERS, "test_connections_to_workers_are_kept_and_used_again"),
    "upstream keepalive_timeout": (WORKERS, "test_nginx_closes_an_idle_connection_before_the_worker_does"),
    "upstream keepalive_requests": (WORKERS, "test_one_connection_to_a_worker_carries_more_than_a_thousand_requests"),
    "upstream include": (NAMES, "test_the_door_of_another_host_gets_its_share"),
    "resolver": (NAMES, "test_workers_that_come_are_used_and_those_that_go_are_not_missed"),
    "resolver_timeout": (NAMES, "test_a_neighbour_whose_name_is_not_answered_is_given_up"),
    "proxy_pass": (WORKERS, "test_least_conn_counts_over_all_processes"),
    "proxy_http_version": (WORKERS, "test_connections_to_workers_are_kept_and_used_again"),
    "proxy_set_header": (CLIENTS, "test_workers_learn_who_asked_and_how"),
    "proxy_connect_timeout": (WORKERS, "test_a_worker_that_does_not_accept_is_passed_over_after_a_second"),
    "proxy_send_timeout": (WORKERS, "test_a_worker_that_does_not_take_the_body_is_passed_over"),
    "proxy_read_timeout": (WORKERS, "test_a_worker_that_never_answers_costs_the_deadline_once"),
    "proxy_next_upstream_timeout": (WORKERS, "test_a_worker_that_never_answers_costs_the_deadline_once"),
    "proxy_next_upstream": (WORKERS, "test_what_may_change_something_is_sent_once_also_when_its_worker_dies"),
    "proxy_next_upstream_tries": (WORKERS, "test_a_request_that_kills_its_worker_reaches_three_at_most"),
    "proxy_buffer_size": (WORKERS, "test_the_worker_s_long_headers_pass"),
    "proxy_buffers": (CLIENTS, "test_a_slow_reader_holds_no_worker"),
    # what nginx says itself
    "map": (FRONT, "test_the_request_id_is_kept_or_made"),
    "geo": (CLIENTS, "test_only_private_addresses_see_the_neighbours"),
    "if": (CLIENTS, "test_only_private_addresses_see_the_neighbours"),
    "set": (CLIENTS, "test_the_neighbours_are_reached_by_name_when_they_are_there"),
    "location": (FRONT, "test_only_predictions_are_tried_twice"),
    "return": (FRONT, "test_metrics_are_not_public"),
    "internal": (CLIENTS, "test_a_path_means_what_it_says"),
    "error_page": (WORKERS, "test_the_last_resort_asks_somebody_although_all_are_left_out"),
    "recursive_error_pages": (WORKERS, "test_a_request_that_kills_its_worker_reaches_three_at_most"),
    "default_type": (CLIENTS, "test_a_runaway_client_gets_429_and_when_to_come_back"),
    "add_header": (CLIENTS, "test_a_runaway_client_gets_429_and_when_to_come_back"),
    "access_log": (FRONT, "test_the_access_log_tells_who_answered_and_how_long"),
    "log_format": (CLIENTS, "test_the_log_is_json_whatever_clients_send"),
}  # fmt: skip

UNSEEN = {
    "tcp_nodelay": "the default; it says that nobody may turn it off",
    "proxy_busy_buffers_size": "a share of proxy_buffers; nginx refuses to start when it does not fit",
    "server_name": "the one server; nginx needs no name, its log does",
    "include": "without its file nginx does not start",
    "events": "a block", "http": "a block", "server": "a block",
}  # fmt: skip

BLOCKS = {"events", "http", "server", "location", "map", "geo", "upstream"}
PLAIN = {"include", "listen", "server_name", "proxy_pass", "set", "if", "return", "internal", "error_page", "add_header",
         "default_type", "log_format"}  # fmt: skip
"""What it does is what it says; there is no default worth knowing."""
NAMES_NOT_NUMBERS = {"limit_req_status", "proxy_http_version"}

UNITS = re.compile(r"seconds|bytes|number|processes|files|connections|requests|tries|\d ?(s|k|m|h|MB|kB)\b")
TOKEN = re.compile(r"""#[^\n]*|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[{};\n]|(?:\$\{\w*\}|[^\s{};"'])+""")


@dataclass(frozen=True)
class Directive:
    """``inside`` are the blocks around it; ``comment`` is what stands beside it and goes on below, or above its paragraph."""

    file: str
    name: str
    value: str
    inside: tuple[str, ...]
    comment: str

    @property
    def key(self) -> str:
        """Its name; what an upstream has of the same name is something else."""
        return f"upstream {self.name}" if "upstream" in self.inside else self.name


def directives(file: str) -> Iterator[Directive]:
    """All of a file, in order; entries of map and geo blocks are data, not directives."""
    text = (FOLDER / file).read_text()
    lines = text.splitlines()
    blocks: list[str] = []
    words: list[str] = []
    line = began = 0
    for token in TOKEN.findall(text):
        if token == "\n":
            line += 1
        elif token not in {"{", "}", ";"} and not token.startswith("#"):
            began = began if words else line
            words.append(token)
        elif not token.startswith("#"):
            if words and not {"map", "geo"} & set(blocks):
                yield Directive(file, words[0], " ".join(words[1:]), tuple(blocks), comment(lines, began))
            if token == "{":
                blocks.append(words[0])
            elif token == "}":
                blocks.pop()
            words = []


def comment(lines: list[str], at: int) -> str:
    """Beside line ``at``, going on below it; and what opens its paragraph."""
    below = at + 1
    while below < len(lines) and lines[below].lstrip().startswith("#"):
        below += 1
    first = at
    while first and lines[first - 1].strip():
        first -= 1
    opening = list(itertools.takewhile(lambda line: line.lstrip().startswith("#"), lines[first:at]))
    beside = [line.partition("# ")[2] for line in lines[at:below]]
    return "\n".join([*opening, *beside])


ALL = [directive for file in FILES for directive in directives(file)]


def test_the_files_are_read_as_nginx_reads_them() -> None:
    """The reader of this test finds what is certainly there, with the comment that goes with it."""
    found = {directive.key: directive for directive in ALL if directive.file == "nginx.conf"}
    assert found["client_header_timeout"].value == "10s" and "default 60s" in found["client_header_timeout"].comment
    assert found["proxy_next_upstream"].inside[:2] == ("http", "server") and len(ALL) > 100
    assert found["scgi_temp_path"].comment.count("defaults") == 1


def test_every_directive_is_seen_at_work() -> None:
    """By a test that exists, or there is a reason why nobody can see it; and nothing else is in the table."""
    assert {directive.key for directive in ALL} == SEEN_BY.keys() | UNSEEN.keys()
    assert not SEEN_BY.keys() & UNSEEN.keys()


@pytest.mark.parametrize("file", sorted({file for file, _ in SEEN_BY.values()}))
def test_the_tests_of_the_table_exist(file: str) -> None:
    """Names in a table rot; these cannot."""
    defined = {node.name for node in ast.parse((TESTS / file).read_text()).body if isinstance(node, ast.FunctionDef)}
    assert {test for where, test in SEEN_BY.values() if where == file} <= defined


@pytest.mark.parametrize("key", sorted({directive.key for directive in ALL} - BLOCKS - PLAIN))
def test_every_dial_says_why_with_default_and_unit(key: str) -> None:
    """Where it stands for the first time at the latest: what nginx would do without it, and what its numbers count."""
    found = [directive for directive in ALL if directive.key == key]
    told = [directive for directive in found if "default" in directive.comment]
    assert told, f"{key}: no comment says nginx's default"
    if any(re.fullmatch(r"[\d. ]+[a-z]*", directive.value) for directive in found) and key not in NAMES_NOT_NUMBERS:
        assert any(UNITS.search(directive.comment) for directive in told), f"{key}: no comment says the unit"
