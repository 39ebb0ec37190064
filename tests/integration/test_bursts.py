"""Sends that come in together are logged, answered and refused like those that come one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from bus.testing import BusServer
from tests.calls import call, payloads, state
from tests.rawws import TEXT, RawWebSocket, frame_bytes

CAP = 10
SENT = 700
"""More than one burst holds."""

ENV = {"BUS_EXTENSIONS": "tests.looked_at", "INBOX_LIMIT": str(CAP)}


@pytest.fixture(scope="module")
def server() -> Iterator[BusServer]:
    """A server with an extension that looks at messages, and small inboxes."""
    with BusServer(env=ENV) as running:
        yield running


@pytest.fixture(scope="module")
def server4() -> Iterator[BusServer]:
    """The same with four workers."""
    with BusServer(env=ENV, workers=4) as running:
        yield running


def together(server: BusServer, client: str, sends: list[Any], *, more: int = 0) -> list[dict[str, Any]]:
    """Send frames in one piece; the answers to all that have a ref, and so many more. Bytes go as the text that they are."""
    texts = [each if isinstance(each, bytes) else json.dumps({"type": "send", **each}).encode() for each in sends]
    asked = more + sum(isinstance(each, bytes) or "ref" in each for each in sends)
    with RawWebSocket(server.port, f"/ws/{client}") as socket:
        socket.read_until("connection_confirmed")
        socket.send_bytes(b"".join(frame_bytes(TEXT, text) for text in texts))
        answers: list[dict[str, Any]] = []
        while len(answers) < asked:
            found = json.loads(socket.read_frame().payload)
            if found["type"] in ("sent", "error", "pong"):
                answers.append(found)
        return answers


def send(ref: object, to: object = "all", **more: object) -> dict[str, Any]:
    return {"to": to, "payload": ref, "ref": ref, **more}


def log_of(server: BusServer, sender: str) -> list[dict[str, Any]]:
    """All that the log holds of a sender's, in order."""
    found: list[dict[str, Any]] = call(server, "GET", "/api/log", limit=1000, **{"from": sender})["messages"]
    return found


def logged(server: BusServer, sender: str) -> list[Any]:
    """The payloads of `log_of`."""
    return payloads(log_of(server, sender))


def test_a_burst_is_logged_in_its_order_and_each_message_is_answered(each_server: BusServer) -> None:
    answers = together(each_server, "many", [send(number) for number in range(SENT)])
    assert [answer["ref"] for answer in answers] == list(range(SENT))
    assert {answer["type"] for answer in answers} == {"sent"}
    seqs = [answer["seq"] for answer in answers]
    assert seqs == sorted(seqs)
    assert all(answer["message_id"].endswith(f"-{answer['seq']:012x}") for answer in answers)
    assert logged(each_server, "many") == list(range(SENT))


def test_what_is_wrong_among_good_ones_is_told_and_keeps_none_from_its_place(each_server: BusServer) -> None:
    sends = [
        send(0),
        send(1, type="refused", msg_type="refused"),
        send(2, msg_type="refused"),
        send(3),
        send(4, msg_type="fails"),
        send(5, "not a name"),
        send(6, msg_type="stamped"),
        b'{"type":"send","to":"all","payload":{"a":[}',
        send(8, "bob", require_ack=True),
        send(9, "topic:news.today"),
        send(10, msg_type="bad type"),
        b'{"type":"ping"}',
        send(11, ephemeral=True),
        send(12, ["ann", "bob"]),
        {**send(13), "surprise": 1},
        send(14),
    ]
    del sends[1]
    answers = together(each_server, "mixed", sends)
    said = {answer["ref"]: answer.get("code", "sent") for answer in answers if "ref" in answer}
    assert said == {
        0: "sent",
        2: "not_wanted",
        3: "sent",
        4: "unavailable",
        5: "bad_name",
        6: "sent",
        8: "sent",
        9: "sent",
        10: "bad_name",
        11: "sent",
        12: "sent",
        13: "sent",
        14: "sent",
    }
    assert [answer["code"] for answer in answers if answer["type"] == "error" and "ref" not in answer] == ["bad_json"]
    assert sum(answer["type"] == "pong" for answer in answers) == 1
    assert logged(each_server, "mixed") == [0, 3, 6, 8, 9, 12, 13, 14]
    (stamped,) = (message for message in log_of(each_server, "mixed") if message["type"] == "stamped")
    assert stamped["headers"] == {"stamped": "yes"}


def test_what_an_extension_makes_of_a_plain_send_is_kept_to(each_server: BusServer) -> None:
    answers = together(each_server, "maker", [send(0, "owner"), send(1, "owner", msg_type="tracked"), send(2, "owner")])
    assert [answer["type"] for answer in answers] == ["sent"] * 3
    found = log_of(each_server, "maker")
    assert [message["requires_ack"] for message in found] == [False, True, False]
    assert state(each_server, found[1]["id"], "owner") == "waiting"


def test_an_inbox_that_fills_up_amid_a_burst_refuses_the_rest_of_its_mail_alone(each_server: BusServer) -> None:
    sends = [send(number, "small" if number % 2 else "all") for number in range(4 * CAP)]
    answers = together(each_server, "filler", sends)
    codes = {answer["ref"]: answer.get("code", "sent") for answer in answers}
    assert [codes[number] for number in range(0, 4 * CAP, 2)] == ["sent"] * 2 * CAP
    assert [codes[number] for number in range(1, 4 * CAP, 2)] == ["sent"] * CAP + ["inbox_full"] * CAP
    states = [answer["recipients"][0]["state"] for answer in answers if answer["ref"] in range(1, 2 * CAP, 2)]
    assert states == ["unknown"] * CAP
    assert logged(each_server, "filler") == [number for number in range(4 * CAP) if codes[number] == "sent"]


def test_ephemeral_ones_reach_who_is_there_in_their_order_and_are_answered(each_server: BusServer) -> None:
    with RawWebSocket(each_server.port, "/ws/hearer") as hearer:
        hearer.read_until("connection_confirmed")
        sends = [send(number, ["hearer", "away"][number % 2], ephemeral=True) for number in range(20)]
        answers = together(each_server, "whisperer", sends)
        heard = [hearer.read_until("message")["message"] for _ in range(10)]
    assert payloads(heard) == list(range(0, 20, 2))
    assert [answer["seq"] for answer in answers] == [None] * 20
    assert [answer["recipients"][0]["state"] for answer in answers] == ["delivered", "dropped"] * 10
    assert len({answer["message_id"] for answer in answers}) == 20
    assert [message["id"] for message in heard] == [answer["message_id"] for answer in answers[::2]]
    assert logged(each_server, "whisperer") == []


def test_no_answer_where_none_is_wanted_but_to_what_is_refused(each_server: BusServer) -> None:
    quiet = {"to": "all", "payload": "x"}
    sends = [quiet, {**quiet, "msg_type": "refused"}, quiet, send("end")]
    answers = together(each_server, "quiet", sends, more=1)
    assert [(answer["type"], answer.get("ref")) for answer in answers] == [("error", None), ("sent", "end")]
    assert logged(each_server, "quiet") == ["x", "x", "end"]


def test_a_batch_over_rest_answers_each_message_in_its_place(each_server: BusServer) -> None:
    types = ["message", "refused", "message", "stamped", "fails", "message"]
    batch = [{"from": "poster", "to": "all", "type": type_, "payload": at} for at, type_ in enumerate(types)]
    results = call(each_server, "POST", "/api/send/batch", {"messages": batch})["results"]
    codes = [result.get("code", result.get("status")) for result in results]
    assert codes == ["sent", "not_wanted", "sent", "sent", "unavailable", "sent"]
    assert logged(each_server, "poster") == [0, 2, 3, 5]
    good = [result["seq"] for result in results if "seq" in result]
    assert good == sorted(good)
    assert all(result["timestamp"] for result in results if "seq" in result)


@pytest.mark.parametrize("ephemeral", [True, False])
def test_a_batch_over_rest_may_be_of_one_sort_or_of_both(server: BusServer, ephemeral: bool) -> None:
    batch = [{"from": "both", "to": "all", "payload": at, "ephemeral": ephemeral or at == 1} for at in range(3)]
    results = call(server, "POST", "/api/send/batch", {"messages": batch})["results"]
    assert [result["seq"] is None for result in results] == [ephemeral, True, ephemeral]
