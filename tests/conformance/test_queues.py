"""Queues: each item goes to one taker at a time, over sockets and by claims."""

from __future__ import annotations

import threading
import time

from tests.conformance.remote import Remote, Socket, eventually


def consumer(remote: Remote, queue: str, **how: object) -> Socket:
    """A connection that takes items of a queue."""
    socket = remote.connect(remote.name("worker"))
    assert socket.ask("subscribe", queues=[queue], **how)["queues"] == [queue]
    return socket


def test_an_item_goes_to_one_consumer_and_always_needs_an_ack(remote: Remote) -> None:
    queue = remote.queue()
    with consumer(remote, queue) as one, consumer(remote, queue) as two:
        receipt = remote.send(remote.name("sender"), f"queue:{queue}", 1)
        (entry,) = receipt["recipients"]
        assert (entry["client"], entry["state"]) == (f"queue:{queue}", "sent")
        assert 0 <= entry["online"] <= 2  # other processes of the bus hear of consumers a moment later
        takes_one = not one.is_quiet()
        taker, other = (one, two) if takes_one else (two, one)
        item = taker.message()
        assert (item["to"], item["requires_ack"], item["payload"]) == (f"queue:{queue}", True, 1)
        assert other.is_quiet()
        assert other.settle("ack", item)["code"] == "not_recipient"
        assert taker.settle("ack", item)["status"] == "acked"
    assert remote.state(receipt["message_id"])[f"queue:{queue}"]["state"] == "acked"


def test_the_work_is_shared(remote: Remote) -> None:
    queue, count = remote.queue(), 40
    with consumer(remote, queue, max_in_flight=1) as one, consumer(remote, queue, max_in_flight=1) as two:
        for number in range(count):
            remote.send(remote.name("sender"), f"queue:{queue}", number)
        done: dict[str, list[int]] = {one.client: [], two.client: []}

        def work(socket: Socket) -> None:
            while sum(map(len, done.values())) < count:
                if not socket.is_quiet(0.1):
                    item = socket.message()
                    done[socket.client].append(item["payload"])
                    socket.settle("ack", item)

        threads = [threading.Thread(target=work, args=[socket]) for socket in (one, two)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=20)
    assert sorted(done[one.client] + done[two.client]) == list(range(count))
    assert all(len(mine) >= count // 10 for mine in done.values())


def test_a_consumer_holds_no_more_than_it_asked_for(remote: Remote) -> None:
    queue = remote.queue()
    for number in range(5):
        remote.send(remote.name("sender"), f"queue:{queue}", number)
    with consumer(remote, queue, max_in_flight=2) as socket:
        first, _ = socket.messages(2)
        assert socket.is_quiet()
        socket.settle("ack", first)
        assert socket.message()["payload"] == 2


def test_a_clean_close_gives_back_uncounted_and_at_once(remote: Remote) -> None:
    queue = remote.queue()
    message_id = remote.send(remote.name("sender"), f"queue:{queue}")["message_id"]
    with consumer(remote, queue) as leaver:
        leaver.message()
    with consumer(remote, queue) as other:
        again = other.message()
        assert (again["id"], again["redelivered"]) == (message_id, True)
        assert remote.state(message_id)[f"queue:{queue}"]["failures"] == 0


def test_a_connection_that_breaks_leaves_the_lease_to_run_out(remote: Remote) -> None:
    queue = remote.queue()
    sent = remote.send(remote.name("sender"), f"queue:{queue}", ack_wait=0.5)
    socket = consumer(remote, queue)
    socket.message()
    socket.cut()
    eventually(lambda: not remote.get(f"/api/clients/{socket.client}").body["online"])

    def standing() -> tuple[object, object]:
        found = remote.state(sent["message_id"])[f"queue:{queue}"]
        return found["state"], found["failures"]

    eventually(lambda: standing() == ("resting", 1))


def test_subscriptions_are_answered_with_all_there_are_now(remote: Remote) -> None:
    one, two = sorted([remote.queue(), remote.queue()])
    with remote.connect(remote.name()) as socket:
        assert socket.ask("subscribe", queues=[two])["queues"] == [two]
        assert socket.ask("subscribe", queues=[one])["queues"] == [one, two]
        answer = socket.ask("unsubscribe", queues=[two])
        assert (answer["type"], answer["queues"], answer["topics"]) == ("subscribed", [one], [])
        socket.send("subscribe")  # the old confirmation
        assert socket.expect("subscribed")["queues"] == [one]
        remote.send(remote.name("sender"), f"queue:{two}")
        assert socket.is_quiet()
        assert socket.ask("subscribe", queues=[one], max_in_flight=0)["code"] == "bad_field"


# ---- claims


def test_a_claim_takes_up_to_its_limit_the_most_urgent_first(remote: Remote) -> None:
    queue, worker = remote.queue(), remote.name("worker")
    for priority in ("low", "normal", "critical", "normal"):
        remote.send(remote.name("sender"), f"queue:{queue}", priority, priority=priority)
    assert [item["payload"] for item in remote.claim(queue, worker, limit=3)] == ["critical", "normal", "normal"]
    assert [item["payload"] for item in remote.claim(queue, worker, limit=3)] == ["low"]
    assert remote.claim(queue, worker) == []


def test_a_claim_waits_for_what_comes(remote: Remote) -> None:
    queue, worker = remote.queue(), remote.name("worker")
    timer = threading.Timer(0.3, remote.send, [remote.name("sender"), f"queue:{queue}", "came"])
    timer.start()
    assert [item["payload"] for item in remote.claim(queue, worker, wait=20)] == ["came"]
    timer.join()
    began = time.monotonic()
    assert remote.claim(queue, worker, wait=0.3) == []
    assert time.monotonic() - began < 5


def test_a_claimed_item_belongs_to_who_claimed_it(remote: Remote) -> None:
    queue, worker = remote.queue(), remote.name("worker")
    message_id = remote.send(remote.name("sender"), f"queue:{queue}")["message_id"]
    remote.claim(queue, worker, ack_wait=60)
    refused = remote.post(f"/api/messages/{message_id}/ack", {"client": remote.name("stranger")})
    assert (refused.status, refused.body["code"]) == (403, "not_recipient")
    assert remote.settle("release", message_id, worker)["status"] == "released"
    (again,) = remote.claim(queue, remote.name("other"))
    assert (again["id"], again["attempt"], again["redelivered"]) == (message_id, 2, True)


def test_a_queue_tells_how_it_stands(remote: Remote) -> None:
    queue, worker = remote.queue(), remote.name("worker")
    for _ in range(3):
        remote.send(remote.name("sender"), f"queue:{queue}")
    remote.claim(queue, worker)
    found = remote.get(f"/api/queues/{queue}").body
    assert (found["queue"], found["depth"], found["in_flight"], found["consumers"]) == (queue, 2, 1, 0)
    assert found["oldest_seconds"] >= 0
    with consumer(remote, remote.queue()) as other:
        name = other.ask("subscribe")["queues"][0]
        assert eventually(lambda: remote.get(f"/api/queues/{name}").body["consumers"] == 1)


def test_a_full_queue_refuses_or_sets_the_oldest_aside(admin: Remote) -> None:
    queue, sender = admin.queue(), admin.name("sender")
    assert admin.call("PUT", f"/api/queues/{queue}", {"limit": 1}).body["limit"] == 1
    admin.send(sender, f"queue:{queue}", "old")
    refused = admin.post("/api/send", {"from": sender, "to": f"queue:{queue}"})
    assert (refused.status, refused.body["code"]) == (429, "queue_full")
    assert int(refused.headers["Retry-After"]) > 0
    admin.call("PUT", f"/api/queues/{queue}", {"limit": 1, "on_full": "dead_letter"})
    admin.send(sender, f"queue:{queue}", "new")
    (dead,) = admin.get("/api/dead-letters", owner=f"queue:{queue}").body["dead_letters"]
    assert (dead["reason"], dead["message"]["payload"]) == ("overflow", "old")
    assert [item["payload"] for item in admin.claim(queue, sender)] == ["new"]


def test_a_full_inbox_is_refused(admin: Remote) -> None:
    name, other, sender = admin.name(), admin.name(), admin.name("sender")
    assert admin.call("PUT", f"/api/clients/{name}", {"limit": 1}).body["limit"] == 1
    admin.send(sender, name)
    refused = admin.post("/api/send", {"from": sender, "to": name})
    assert (refused.status, refused.body["code"]) == (429, "inbox_full")
    fate = admin.send(sender, [name, other])["recipients"]
    assert {entry["client"]: entry["state"] for entry in fate} == {name: "refused", other: "unknown"}
    admin.read(name)  # what was fetched does not wait any more
    eventually(lambda: admin.post("/api/send", {"from": sender, "to": name}).status == 200)
