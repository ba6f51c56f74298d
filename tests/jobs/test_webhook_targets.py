"""Where webhooks may go: the list, the URLs it allows, the addresses that may be connected to."""

from __future__ import annotations

import pytest

from app.jobs.targets import Origin, Targets
from app.settings import SettingsError, load

LISTED = "hooks.example.com, other.example.com:8443 http://receiver:9000,http://127.0.0.1:9001 [2001:db8::1]:9002 10.1.0.0/16"
SECRET = "a-secret-of-many-characters"


@pytest.mark.parametrize(
    ("url", "origin", "path"),
    [
        ("https://hooks.example.com", Origin("https", "hooks.example.com", 443), "/"),
        ("https://HOOKS.example.com:443/a/b?c=d&e", Origin("https", "hooks.example.com", 443), "/a/b?c=d&e"),
        ("https://other.example.com:8443/", Origin("https", "other.example.com", 8443), "/"),
        ("http://receiver:9000/x", Origin("http", "receiver", 9000), "/x"),
        ("http://127.0.0.1:9001/", Origin("http", "127.0.0.1", 9001), "/"),
        ("https://[2001:DB8:0::1]:9002/", Origin("https", "2001:db8::1", 9002), "/"),
    ],
)
def test_a_listed_target_is_read(url: str, origin: Origin, path: str) -> None:
    """However it is written, as long as it is one of the list."""
    target = Targets(LISTED).read(url)
    assert (target.origin, target.path) == (origin, path)


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.com/",  # in the clear
        "https://hooks.example.com:8443/",  # another port
        "https://other.example.com/",
        "https://sub.hooks.example.com/",
        "https://hooks.example.com.evil.com/",
        "https://evil.com/hooks.example.com",
        "https://evil.com#@hooks.example.com/",
        "https://evil.com?@hooks.example.com/",
        "https://hooks.example.com@evil.com/",
        "https://me:pass@hooks.example.com/",
        "https://evil.com\\@hooks.example.com/",
        "https://hooks.example.com\\.evil.com/",
        "https://hooks.example.com:443:80/",
        "https://hooks.example.com:/",
        "https://hooks.example.com:0/",
        "https://hooks.example.com:99999/",
        "https://hooks.example.com./",
        "https://hooks.example.com/ x",
        "https://hooks.example.com/\r\nX-Evil: 1",
        "https://hooks.example.com/\tx",
        "https://hooks.example.com/ä",
        "https://hooks.example.com/#part",
        "https://hooks.example.com/" + "x" * 2000,
        "ftp://hooks.example.com/",
        "file:///etc/passwd",
        "//hooks.example.com/",
        "hooks.example.com",
        "https://",
        "",
        "http://10.1.2.3/",  # a network says where names may lead, not whom to call
        "http://2130706433:9001/",  # 127.0.0.1 in other words
        "http://127.1:9001/",
        "http://0x7f.0.0.1:9001/",
        "http://[::ffff:127.0.0.1]:9001/",
        "http://[::1/",
    ],
)
def test_everything_else_is_refused(url: str) -> None:
    """Other schemes, hosts and ports, and whatever two parsers might read in two ways."""
    with pytest.raises(ValueError):
        Targets(LISTED).read(url)


@pytest.mark.parametrize(
    ("address", "may"),
    [
        ("93.184.216.34", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", True),  # listed as a target
        ("2001:db8::1", True),
        ("10.1.255.255", True),  # in a listed network
        ("10.2.0.1", False),
        ("127.0.0.2", False),
        ("192.168.1.1", False),
        ("172.16.0.1", False),
        ("169.254.169.254", False),  # where clouds keep credentials
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),  # not the listed form of it
        ("::ffff:93.184.216.34", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b:1::7f00:1", False),
        ("fec0::1", False),
        ("ff0e::1", False),
        ("2002:7f00:1::", False),
        ("2001:0:0:1::1", False),
    ],
)
def test_only_public_and_listed_addresses_may_be_connected_to(address: str, may: bool) -> None:
    """Private, loopback, link-local, shared, multicast and tunnelled ones only where the operator named them."""
    assert Targets(LISTED).permits(address) is may


@pytest.mark.parametrize(
    "entry", ["https://a/b", "a:0", "a:b", "10.0.0.1/8", "a@b", "ftp://a", "*.example.com", "http://10.0.0.0/8"]
)
def test_a_list_that_cannot_be_read_is_refused_at_the_start(entry: str) -> None:
    """By the entry's name; and targets without a secret to sign with are none."""
    with pytest.raises(SettingsError, match="KRONOS_WEBHOOK_TARGETS"):
        load({"KRONOS_WEBHOOK_TARGETS": f"good.example.com {entry}", "KRONOS_WEBHOOK_SECRETS": SECRET})
    with pytest.raises(SettingsError, match="needs KRONOS_WEBHOOK_SECRETS"):
        load({"KRONOS_WEBHOOK_TARGETS": "good.example.com"})
    assert load({"KRONOS_WEBHOOK_TARGETS": "good.example.com", "KRONOS_WEBHOOK_SECRETS": SECRET})


@pytest.mark.parametrize("given", ["short", f"{SECRET},short"])
def test_a_weak_secret_is_refused_and_not_shown(given: str) -> None:
    """A secret that can be guessed signs nothing; no message repeats it."""
    with pytest.raises(SettingsError, match="KRONOS_WEBHOOK_SECRETS") as caught:
        load({"KRONOS_WEBHOOK_SECRETS": given})
    assert "short" not in str(caught.value)
