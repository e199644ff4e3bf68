"""Server-sent events: what one does, others hear of within a second, unless they may not know of it."""

import contextlib
import json
import threading
import time

import httpx
import pytest
from cluster_support import save
from depth import allowed
from http_support import PASSWORD, HttpDoor, People, events
from waiting import wait_for

EVENTS = "/api/v1/events"


class Listener:
    """Somebody who listens, in a thread."""

    def __init__(self, client):
        self.heard = {}
        self.resyncs = 0
        self.open = threading.Event()
        self._client = client
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        assert self.open.wait(60)

    def _listen(self):
        # The cluster ends before those who listen to it.
        with contextlib.suppress(httpx.HTTPError), self._client.stream("GET", EVENTS) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            for name, data in events(stream):
                if name == "resync":
                    self.resyncs += 1
                elif name == "studies":
                    for uid in json.loads(data)["study_instance_uids"]:
                        self.heard.setdefault(uid, []).append(time.monotonic())
                self.open.set()


@pytest.fixture(scope="module")
def listeners(people):
    return {role: Listener(people[role]) for role in ("radiologist", "technologist")}


def test_what_is_stored_and_reported_is_heard_of_within_a_second(cluster, people, listeners, tmp_path):
    assert cluster.run("store", save(tmp_path, 201)).code == 0
    uid = "2.25.77.201"
    for listener in listeners.values():
        wait_for(lambda heard=listener.heard: uid in heard)
    # Its verification comes behind it: wait until all is said.
    path = f"/api/v1/studies/{uid}"
    wait_for(lambda: people["radiologist"].get(path).json()["study"]["verification"] != "PENDING")
    rita, other = people["radiologist"], listeners["technologist"]
    delays = []
    for text in ("a", "b", "c"):
        time.sleep(0.5)
        before = len(other.heard[uid])
        begin = time.monotonic()
        assert rita.post(f"{path}/reports", json={"text": text}).status_code == 200
        wait_for(lambda before=before: len(other.heard[uid]) > before)
        delays.append(other.heard[uid][-1] - begin)
        # Whoever reads then reads what is new.
        assert people["technologist"].get(f"{path}/reports").json()["reports"][0]["text"] == text
    assert sorted(delays)[1] < 1.0, delays


def test_what_is_held_is_heard_of_by_who_may_see_it_alone(cluster, people, listeners, tmp_path):
    people.add("tom", "technologist")
    (tmp_path / "secret").write_text(PASSWORD)
    held, uid = save(tmp_path, 202), "2.25.77.202"
    assert cluster.run("store", held, "--user", "tom", "--password-file", tmp_path / "secret").code == 0
    wait_for(lambda: people["technologist"].get(f"/api/v1/studies/{uid}").json()["study"]["verification"] == "HELD")
    wait_for(lambda: uid in listeners["technologist"].heard)
    # What comes behind it is heard of: nothing of it is still on its way.
    assert cluster.run("store", save(tmp_path, 203)).code == 0
    wait_for(lambda: "2.25.77.203" in listeners["radiologist"].heard)
    assert uid not in listeners["radiologist"].heard
    over = {"override": True, "reason": "so it shall be"}
    assert people["administrator"].post(f"/api/v1/studies/{uid}/release", json=over).status_code == 200
    wait_for(lambda: uid in listeners["radiologist"].heard)


def test_no_more_listen_than_the_limit(people, tmp_path_factory):
    door = HttpDoor(tmp_path_factory.mktemp("few"), max_watchers=2)
    visitors = People(door.url, door.client("AccountService"))
    try:
        streams = []
        for _ in range(2):
            client = visitors["radiologist"]
            stream = client.send(client.build_request("GET", EVENTS), stream=True)
            lines = stream.iter_lines()
            assert next(lines) == "retry: 1000"
            streams.append((stream, lines))

        def asked():
            with visitors["radiologist"].stream("GET", EVENTS) as answer:
                return answer.status_code, int(answer.headers.get("retry-after", 0))

        assert asked() == (429, 10)
        # One that listens is no request that runs, and when it leaves, its place is given to the next.
        streams.pop()[0].close()
        wait_for(lambda: asked() == (200, 0))
    finally:
        visitors.close()
        begin = time.monotonic()
        door.close()
    assert time.monotonic() - begin < allowed(10)
