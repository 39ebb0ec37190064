"""The ledger's questions and changes: SQL that both dialects read."""

from __future__ import annotations

from bus.storage.rows import COLUMNS

DELIVERY = "owner, seq, state, until, holder, attempt, failures, ack_wait, leased_at, history, lease_wait"
ENTER = "INSERT INTO deliveries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)"
FRESH = "(SELECT m.expires_at IS NULL OR m.expires_at > ? FROM messages m WHERE m.seq = d.seq)"
NEXT = f"""
SELECT seq, attempt, ack_wait FROM deliveries d
 WHERE owner = ? AND state = 0 AND {FRESH} ORDER BY due_key, seq LIMIT ?"""
AGAIN = f"""
SELECT seq, attempt, ack_wait, due_key, until FROM deliveries d
 WHERE owner = ? AND state = 1 AND seq > ? AND seq <= ? AND (due_key, seq) > (?, ?) AND {FRESH}
 ORDER BY due_key, seq LIMIT ?"""
LEASE = """
UPDATE deliveries SET state = 1, until = ?, holder = ?, lease_wait = ?, attempt = attempt + 1, leased_at = ?
 WHERE owner = ? AND seq = ?"""
REST = """
UPDATE deliveries SET state = ?, until = ?, holder = NULL, leased_at = NULL, attempt = ?, failures = ?, history = ?
 WHERE owner = ? AND seq = ?"""
WAKE = "UPDATE deliveries SET state = 0, until = NULL WHERE owner = ? AND seq = ?"
OUTLIVED = f"SELECT {DELIVERY} FROM deliveries WHERE expires_at <= ? AND state <> 1 ORDER BY expires_at LIMIT ?"
BURY = """
INSERT INTO dead_letters VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id, owner) DO UPDATE SET died_at = excluded.died_at, reason = excluded.reason, detail = excluded.detail,
 attempts = excluded.attempts, seq = excluded.seq"""
OPEN = f"SELECT {DELIVERY} FROM deliveries WHERE owner = ? AND seq = ?"
OLDEST = f"SELECT {DELIVERY} FROM deliveries WHERE owner = ? AND state <> 1 ORDER BY seq LIMIT 1"
OVER = f"SELECT {DELIVERY} FROM deliveries WHERE until <= ? ORDER BY until LIMIT ?"
BACKLOG = "SELECT waiting, leased, capacity, on_full FROM backlogs WHERE owner = ?"
KEEP_BACKLOG = """
INSERT INTO backlogs VALUES (?, ?, ?, ?, ?) ON CONFLICT (owner) DO UPDATE SET waiting = excluded.waiting,
 leased = excluded.leased, capacity = excluded.capacity, on_full = excluded.on_full"""
MESSAGE = f"SELECT {COLUMNS} FROM messages m WHERE m.seq = ?"
PLACE = "SELECT kind, address, flags FROM messages WHERE seq = ?"
OTHER_PLACES = "SELECT seq FROM other_ids WHERE id = ? ORDER BY seq DESC"
