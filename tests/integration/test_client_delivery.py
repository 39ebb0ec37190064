"""What needs an ack, queues, requests and what hangs on them: the client against a real server."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from bus.client import Client, Failed, Message, Nack, Reject
from bus.errors import Conflict, Malformed, NotFound
from bus.testing import BusServer, eventually
from tests.unit.scripted_bus import Gathered

PATIENCE_SECONDS = 30.0


def was_acked(server: BusServer, message_id: str | None) -> bool:
    """Whether the bus says that every recipient of a message has acked it."""
    return "acked" in str(server.call("GET", f"/api/messages/{message_id}").body)


def failures(server: BusServer, message_id: str | None) -> list[int]:
    """How often each recipient of a message failed on it, a lease that ran out included."""
    return [each["failures"] for each in server.call("GET", f"/api/messages/{message_id}").body["recipients"]]


# ---- acks


def test_what_a_handler_failed_on_comes_again_and_what_it_did_does_not(server: BusServer) -> None:
    handled = Gathered()
    with Client("ack-sender", server.url) as sender, Client("ack-handler", server.url) as receiver:

        @receiver.on("task")
        def work(message: Message) -> None:
            handled((message.payload, message.attempt))
            if message.payload == "flaky" and message.attempt == 1:
                raise Nack("not yet", delay=0)

        receipts = [sender.send("ack-handler", what, type="task", require_ack=True) for what in ("good", "flaky")]
        assert [handled.next() for _ in range(3)] == [("good", 1), ("flaky", 1), ("flaky", 2)]
        for receipt in receipts:
            eventually(partial(was_acked, server, receipt.message_id), what="the ack's arrival")
        assert server.call("GET", "/api/messages?to=ack-handler").body["messages"] == []
        assert handled.is_empty


def test_what_was_not_acked_comes_again_to_the_next_connection_of_its_client(server: BusServer) -> None:
    with Client("again-sender", server.url) as sender:
        sender.send("again", "work", require_ack=True)
    with Client("again", server.url) as first:
        message = first.receive(PATIENCE_SECONDS)
        assert (message.attempt, message.redelivered, message.requires_ack) == (1, False, True)
    with Client("again", server.url) as second:
        message = second.receive(PATIENCE_SECONDS)
        assert (message.attempt, message.redelivered) == (1, True)
        message.ack()
    with Client("again", server.url) as third, Client("again-sender", server.url) as sender:
        sender.send("again", "after it")
        assert third.receive(PATIENCE_SECONDS).payload == "after it"


def test_iterating_acks_what_it_went_past(server: BusServer) -> None:
    with Client("iterating", server.url) as client:
        for n in range(3):
            client.send("iterating", n, require_ack=True)
        for message in client:
            if message.payload == 2:
                break
    with Client("iterating", server.url) as client:
        assert client.receive(PATIENCE_SECONDS).payload == 2


def test_a_rejected_message_is_a_dead_letter_its_sender_hears_of_it_and_it_can_be_redriven(server: BusServer) -> None:
    failures, handled = Gathered(), Gathered()
    with Client("reject-sender", server.url) as sender, Client("rejecting", server.url) as receiver:
        sender.on_failed(failures)

        @receiver.on("task")
        def work(message: Message) -> None:
            handled(message)
            if not message.redriven:
                raise Reject("no such file")

        receipt = sender.send("rejecting", "work", type="task", require_ack=True, thread_id="t-reject")
        assert failures.next() == Failed(receipt.message_id or "", "rejecting", "rejected")
        (letter,) = sender.dead_letters(owner="rejecting")
        assert (letter.id, letter.reason, letter.message.payload) == (receipt.message_id, "rejected", "work")
        assert letter.attempts[0].consumer == "rejecting"
        assert "no such file" in (letter.attempts[0].reason or letter.detail or "")
        assert sender.dead_letter(letter.id) == [letter]
        assert sender.redrive(owner="rejecting", dry_run=True).matched == 1
        assert sender.redrive(owner="rejecting").redriven == 1
        first, again = handled.next(), handled.next()
        assert first.id == again.id
        assert (again.redriven, again.attempt) == (True, 1)
        assert list(sender.dead_letters(owner="rejecting")) == []
        with pytest.raises(NotFound):
            sender.redrive(letter.id)


def test_dead_letters_are_purged(server: BusServer) -> None:
    with Client("purging", server.url) as client:
        client.on("bad", lambda message: message.reject())
        receipts = [client.send("purging", n, type="bad", require_ack=True) for n in range(3)]
        eventually(lambda: len(list(client.dead_letters(owner="purging"))) == 3, what="the third dead letter")
        assert client.purge(receipts[0].message_id).purged == 1
        assert client.purge(owner="purging", dry_run=True).matched == 2
        assert client.purge(owner="purging").purged == 2
        assert client.purge(owner="purging").purged == 0


def test_an_ack_without_a_connection_arrives_when_there_is_one(fresh_server: Callable[..., BusServer]) -> None:
    server = fresh_server()
    with Client("acks-offline", server.url) as client:
        client.send("acks-offline", "work", require_ack=True)
        message = client.receive(PATIENCE_SECONDS)
        server.kill()
        eventually(lambda: not client.is_connected, what="the loss of the connection")
        message.ack()
        server.start()
        client.connect(PATIENCE_SECONDS)
        eventually(partial(was_acked, server, message.id), what="the ack's arrival")


def test_a_handler_slower_than_its_backlogs_leases_handles_each_message_once(
    server: BusServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bus.client.deliveries.KEEP_SECONDS", 0.1)
    handled, go_on = Gathered(), threading.Event()
    with Client("slow-handler", server.url) as client:

        @client.on("task")
        def work(message: Message) -> None:
            handled((message.payload, message.attempt))
            assert go_on.wait(PATIENCE_SECONDS)

        receipts = [client.send("slow-handler", n, type="task", require_ack=True, ack_wait=0.5) for n in range(2)]
        assert handled.next() == (0, 1)
        with pytest.raises(TimeoutError):
            client.receive(2.0)  # four leases later
        assert [failures(server, receipt.message_id) for receipt in receipts] == [[0], [0]]
        go_on.set()
        assert handled.next() == (1, 1)
        for receipt in receipts:
            eventually(partial(was_acked, server, receipt.message_id), what="the ack's arrival")
        assert handled.is_empty


# ---- queues


def test_consumers_of_a_queue_share_its_items(server4: BusServer) -> None:
    shares: Counter[str] = Counter()
    done = threading.Barrier(2)
    got: list[int] = []
    noting = threading.Lock()
    with Client("q-a", server4.url) as a, Client("q-b", server4.url) as b, Client("q-sender", server4.url) as sender:
        for client in (a, b):

            @client.on()
            def work(message: Message, name: str = client.client_id) -> None:
                with noting:
                    shares[name] += 1
                    got.append(message.payload)
                    first = shares[name] == 1
                if first:
                    done.wait(PATIENCE_SECONDS)  # so that nobody takes all before the other has come

            client.subscribe(queues=["shared"], max_in_flight=1)
        for n in range(20):
            assert sender.send("queue:shared", n).recipients[0].client == "queue:shared"
        eventually(lambda: sorted(got) == list(range(20)), what="the last item")
    assert set(shares) == {"q-a", "q-b"}


def test_closing_gives_queue_items_back_at_once_and_uncounted(server: BusServer) -> None:
    with Client("closing-sender", server.url) as sender:
        for n in range(3):
            sender.send("queue:closing", n)
        with Client("closing-a", server.url) as first:
            first.subscribe(queues=["closing"], max_in_flight=3)
            held = [first.receive(PATIENCE_SECONDS) for _ in range(3)]
            held[0].ack()
        with Client("closing-b", server.url) as second:
            second.subscribe(queues=["closing"])
            again = [second.receive(PATIENCE_SECONDS) for _ in range(2)]
            assert [message.payload for message in again] == [1, 2]
            for message in again:
                message.ack()
            eventually(lambda: all(q.depth + q.in_flight == 0 for q in sender.queues()), what="an empty queue")


def test_a_subscription_survives_a_restart_of_the_server(fresh_server: Callable[..., BusServer]) -> None:
    server = fresh_server()
    with Client("subscribed", server.url) as client:
        client.subscribe(queues=["jobs"])
        client.send("queue:jobs", "before")
        client.receive(PATIENCE_SECONDS).ack()
        server.restart()
        client.send("queue:jobs", "after", timeout=PATIENCE_SECONDS)
        after = client.receive(PATIENCE_SECONDS)
        assert (after.payload, after.attempt, after.queue) == ("after", 1, "jobs")
        client.unsubscribe(queues=["jobs"])
        client.send("queue:jobs", "for others")
        with pytest.raises(TimeoutError):
            client.receive(0.5)


def test_workers_do_every_job_once(server4: BusServer) -> None:
    done: Counter[int] = Counter()
    noting = threading.Lock()

    def work(message: Message) -> None:
        with noting:
            done[message.payload] += 1

    with Client("work-sender", server4.url) as sender:
        futures = [sender.send_nowait("queue:work", n) for n in range(100)]
        workers = [Client(f"worker-{n}", server4.url) for n in range(4)]
        with ThreadPoolExecutor() as pool:
            counts = [pool.submit(worker.work, "work", work, max_in_flight=3) for worker in workers]
            eventually(lambda: sum(done.values()) >= 100, within_seconds=PATIENCE_SECONDS, what="the last job")
            for worker in workers:
                worker.close(PATIENCE_SECONDS)
            assert sum(count.result(PATIENCE_SECONDS) for count in counts) == 100
        assert all(future.done() for future in futures)
        assert set(done.values()) == {1}
        assert [queue.depth + queue.in_flight for queue in sender.queues() if queue.queue == "work"] in ([0], [])


def test_a_job_longer_than_its_lease_stays_with_its_worker(server: BusServer) -> None:
    began, go_on = threading.Event(), threading.Event()
    attempts = []

    def work(message: Message) -> None:
        attempts.append(message.attempt)
        began.set()
        assert go_on.wait(PATIENCE_SECONDS)

    worker, other = Client("long-a", server.url), Client("long-b", server.url)
    with ThreadPoolExecutor() as pool, Client("long-sender", server.url) as sender:
        receipt = sender.send("queue:long", "work")
        working = pool.submit(worker.work, "long", work, ack_wait=0.5, count=1)
        assert began.wait(PATIENCE_SECONDS)
        assert other.claim("long", wait=2.0) == [], "four leases later nobody else got it"
        assert failures(server, receipt.message_id) == [0]
        go_on.set()
        assert working.result(PATIENCE_SECONDS) == 1
        assert other.claim("long", wait=0.5) == []
    assert attempts == [1]


def test_a_restart_of_the_server_in_the_middle_of_a_job_does_not_repeat_it(
    fresh_server: Callable[..., BusServer],
) -> None:
    server = fresh_server()
    began, go_on = threading.Event(), threading.Event()

    def work(message: Message) -> None:
        began.set()
        assert go_on.wait(PATIENCE_SECONDS)

    worker = Client("restarted", server.url)
    with ThreadPoolExecutor() as pool:
        server.call("POST", "/api/send", {"from": "a", "to": "queue:restart", "payload": 1})
        working = pool.submit(worker.work, "restart", work, count=1)
        assert began.wait(PATIENCE_SECONDS)
        server.kill()
        go_on.set()
        server.start()
        assert working.result(PATIENCE_SECONDS) == 1
    assert worker.claim("restart") == []
    assert all(queue.depth + queue.in_flight == 0 for queue in worker.queues())


def test_claimed_jobs_are_settled_with_the_buss_word(server: BusServer) -> None:
    with Client("claim-sender", server.url) as sender:
        for n in range(3):
            sender.send("queue:claims", n)
    first, second = Client("claim-a", server.url), Client("claim-b", server.url)
    done, lost, refused = first.claim("claims", limit=3, wait=5, ack_wait=0.3)
    assert done.progress(60) == "extended"
    assert refused.reject("never") == "rejected"
    assert done.ack() == "acked"
    assert done.ack() == "acked"
    (again,) = second.claim("claims", wait=20)
    assert (again.id, again.attempt) == (lost.id, 2)
    assert lost.ack() == "superseded"
    assert again.release() == "released"
    (again,) = second.claim("claims", wait=20)
    assert again.ack() == "acked"


# ---- delays


def test_a_delayed_message_comes_in_time_and_can_be_taken_back_before(server: BusServer) -> None:
    with Client("later", server.url) as client:
        soon = datetime.now(UTC) + timedelta(seconds=0.3)
        receipt = client.send("later", "soon", deliver_at=soon)
        assert (receipt.seq, receipt.recipients[0].state) == (None, "scheduled")
        assert receipt.deliver_at is not None
        never = client.send("later", "never", delay=3600)
        client.cancel(never.message_id or "")
        assert client.receive(PATIENCE_SECONDS).payload == "soon"
        assert datetime.now(UTC) >= soon
        with pytest.raises(Conflict) as late:
            client.cancel(receipt.message_id or "")
        assert late.value.code == "already_sent"


# ---- requests


def test_a_reply_is_returned_and_does_not_come_by_receive_too(server4: BusServer) -> None:
    with Client("asker", server4.url) as asker, Client("counter", server4.url) as counter:
        counter.on_request("count", lambda message: {"words": len(message.payload.split())})
        for _ in range(20):
            reply = asker.request("counter", "to be or not to be", type="count", wait=PATIENCE_SECONDS)
            assert reply.status == "answered"
            assert reply.reply is not None
            assert (reply.reply.sender, reply.reply.payload, reply.reply.type) == ("counter", {"words": 6}, "reply")
        asker.send("asker", "something else")
        assert asker.receive(PATIENCE_SECONDS).payload == "something else"


def test_a_handler_may_ask_while_it_handles(server: BusServer) -> None:
    with Client("chain-a", server.url) as a, Client("chain-b", server.url) as b, Client("chain-c", server.url) as c:
        c.on_request("double", lambda message: message.payload * 2)

        @b.on_request("quadruple")
        def quadruple(message: Message) -> object:
            half = b.request("chain-c", message.payload, type="double", wait=PATIENCE_SECONDS).reply
            assert half is not None
            return half.payload * 2

        reply = a.request("chain-b", 3, type="quadruple", wait=PATIENCE_SECONDS).reply
        assert reply is not None
        assert reply.payload == 12


def test_a_late_reply_can_be_fetched_and_comes_by_receive(server: BusServer) -> None:
    with Client("late-asker", server.url) as asker:
        pending = asker.request("late", "?", wait=0, thread_id="t-late")
        assert (pending.status, pending.missing, pending.reply) == ("pending", ("late",), None)
        with Client("late", server.url) as late:
            late.reply(late.receive(PATIENCE_SECONDS), "!")
        found = asker.fetch_reply(pending.request_id, wait=10)
        assert (found.status, found.reply and found.reply.payload) == ("answered", "!")
        message = asker.receive(PATIENCE_SECONDS)
        assert (message.payload, message.thread_id) == ("!", "t-late")
        thread = asker.thread("t-late")
        assert [each.payload for each in thread.messages] == ["?", "!"]
        assert set(thread.participants) >= {"late-asker", "late"}


def test_of_several_who_were_asked_the_missing_are_named(server: BusServer) -> None:
    with Client("several", server.url) as asker, Client("quick", server.url) as quick:
        quick.on_request("q", lambda _: "here")
        reply = asker.request(["quick", "absent"], 1, type="q", wait=1)
        assert (reply.status, reply.missing) == ("partial", ("absent",))
        with pytest.raises(Conflict) as refused:
            asker.request("absent", 1, type="q", require_online=True)
        assert refused.value.code == "recipient_offline"


def test_a_request_survives_a_restart_of_the_server(fresh_server: Callable[..., BusServer]) -> None:
    server = fresh_server()
    heard = Gathered()
    with Client("r-asker", server.url) as asker, Client("r-slow", server.url) as slow, ThreadPoolExecutor() as pool:
        slow.on("q", heard)
        asking = pool.submit(asker.request, "r-slow", 1, type="q", wait=PATIENCE_SECONDS)
        question = heard.next()
        server.kill()
        server.start()
        slow.reply(question, "after the restart", timeout=PATIENCE_SECONDS)
        reply = asking.result(PATIENCE_SECONDS * 2)
        assert (reply.status, reply.reply and reply.reply.payload) == ("answered", "after the restart")
        assert len(server.call("GET", "/api/log?type=q").body["messages"]) == 1


# ---- replays


def test_a_replay_puts_a_part_of_the_log_into_an_inbox_again(server: BusServer) -> None:
    with Client("replaying", server.url) as client:
        for n in range(3):
            client.send("replaying", n, type="odd" if n % 2 else "even")
        assert [client.receive(PATIENCE_SECONDS).payload for _ in range(3)] == [0, 1, 2]
        made = client.replay("replaying", "earliest", type="even")
        again = [client.receive(PATIENCE_SECONDS) for _ in range(2)]
        assert [(message.payload, message.replayed) for message in again] == [(0, True), (2, True)]
        eventually(lambda: client.fetch_replay(made.replay_id).status == "done", what="the end of the replay")
        assert client.fetch_replay(made.replay_id).copied == 2
        assert made.replay_id in [each.replay_id for each in client.replays()]


# ---- topics


def test_a_client_follows_topics_live_and_through_a_restart(fresh_server: Callable[..., BusServer]) -> None:
    server = fresh_server()
    with Client("t-follower", server.url) as follower, Client("t-sender", server.url) as sender:
        follower.subscribe(topics=["builds.*", "logs.>"])
        for topic in ("builds.linux", "builds.linux.arm", "logs.app.web", "news"):
            sender.send(f"topic:{topic}", topic)
        assert [follower.receive(PATIENCE_SECONDS).payload for _ in range(2)] == ["builds.linux", "logs.app.web"]
        server.kill()
        eventually(lambda: not follower.is_connected, what="the loss of the connection")
        server.start()
        sender.send("topic:builds.mac", "while it was away", timeout=PATIENCE_SECONDS)
        assert follower.receive(PATIENCE_SECONDS).payload == "while it was away"
        follower.unsubscribe(topics=["builds.*"])
        sender.send("topic:builds.mac", "not wanted")
        sender.send("topic:logs.end", "wanted")
        assert follower.receive(PATIENCE_SECONDS).payload == "wanted"
        with pytest.raises(Malformed):
            follower.subscribe(topics=["a.>.b"])
        sender.send("topic:logs.end", "still")
        assert follower.receive(PATIENCE_SECONDS).payload == "still"
