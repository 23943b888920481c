"""Claims about the lock of a workdir in a bucket."""

import json
import threading

import pytest

from jtasks.errors import ConfigError, StorageError
from jtasks.storage import bucket, lease

SAID: list[str] = []


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lease, "RENEW", 0.2)
    monkeypatch.setattr(lease, "LAPSE", 1.5)


def held(url, on_loss=lambda: None):
    return lease.hold(url, ", started here", on_loss, SAID.append)


def elsewhere(url, number, **changes):
    """The lock of a process of another machine."""
    content = {"owner": "process 1 on moon", "machine": "moon", "process": "1 1", "renewals": 0} | changes
    bucket.write(lease._object(url, number), json.dumps(content).encode())


def test_a_run_that_lives_keeps_the_lock_and_an_ended_one_leaves_nothing(url, quick):
    with held(url):
        with pytest.raises(ConfigError, match=r"in use by process .* started here"), held(url):
            pass
        assert list(bucket.listing(url)) == [".lock/000001"]
    assert not bucket.listing(url)


def test_of_starters_at_once_exactly_one_gets_the_lock(url, quick):
    got, refused, done = [], [], threading.Event()

    def start():
        try:
            with held(url):
                got.append(1)
                done.wait(20)
        except ConfigError:
            refused.append(1)

    threads = [threading.Thread(target=start) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads[:]:
        thread.join(0.1)
    while len(got) + len(refused) < 5:
        threading.Event().wait(0.05)
    done.set()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 4)


def test_a_dead_owner_of_another_machine_is_waited_out_and_of_this_one_is_known_at_once(url, quick):
    elsewhere(url, 7)
    SAID.clear()
    with held(url) as own:
        assert own.number == 8
        assert "waiting whether it lives" in SAID[0]
    assert not bucket.listing(url)
    SAID.clear()
    elsewhere(url, 3, **(lease._here() | {"process": "999999999 5"}))
    with held(url) as own:
        assert own.number == 4
    assert not SAID


def test_an_owner_that_comes_back_after_its_successor_stops_and_writes_nothing(url, quick):
    lost = threading.Event()
    with held(url, lost.set) as own:
        elsewhere(url, own.number + 1)
        assert lost.wait(20)
        with pytest.raises(StorageError, match="taken over by process 1 on moon"):
            own.require()
    assert list(bucket.listing(url)) == [".lock/000001", ".lock/000002"]
