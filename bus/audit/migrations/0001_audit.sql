-- The audit trail. old_values and new_values are JSON objects, or NULL; timestamp is microseconds of the bus's clock, UTC;
-- times is how often the same refusal happened within a second. hash: see bus/audit/record.py.
CREATE TABLE audit_logs (
    number     INTEGER PRIMARY KEY,
    timestamp  INTEGER NOT NULL,
    table_name TEXT    NOT NULL,
    record_id  TEXT    NOT NULL,
    operation  TEXT    NOT NULL,
    outcome    TEXT    NOT NULL,
    old_values TEXT,
    new_values TEXT,
    user_id    TEXT    NOT NULL,
    org_id     TEXT,
    address    TEXT    NOT NULL,
    request_id TEXT    NOT NULL,
    times      INTEGER NOT NULL,
    hash       TEXT    NOT NULL
);
CREATE INDEX audit_logs_by_user ON audit_logs (user_id, number);
CREATE INDEX audit_logs_by_operation ON audit_logs (operation, number);

-- Where the chain begins: the last record that retention took, and its hash.
CREATE TABLE audit_anchor (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    number INTEGER NOT NULL,
    hash   TEXT    NOT NULL
);
INSERT INTO audit_anchor VALUES (1, 0, '0000000000000000000000000000000000000000000000000000000000000000');

-- Numbers have no holes, and no record is replaced: INSERT OR REPLACE would delete without asking the triggers below.
CREATE TRIGGER audit_logs_in_order BEFORE INSERT ON audit_logs
WHEN NEW.number IS NOT 1 + coalesce((SELECT max(number) FROM audit_logs), (SELECT number FROM audit_anchor))
BEGIN SELECT RAISE(ABORT, 'audit_logs is appended to, one number after another'); END;

CREATE TRIGGER audit_logs_stay_as_written BEFORE UPDATE ON audit_logs
BEGIN SELECT RAISE(ABORT, 'audit_logs can not be changed'); END;

CREATE TRIGGER audit_logs_stay BEFORE DELETE ON audit_logs
WHEN OLD.number > (SELECT number FROM audit_anchor)
BEGIN SELECT RAISE(ABORT, 'only retention takes records out of audit_logs'); END;

CREATE TRIGGER audit_anchor_is_one BEFORE INSERT ON audit_anchor
BEGIN SELECT RAISE(ABORT, 'audit_anchor has one row'); END;

CREATE TRIGGER audit_anchor_stays BEFORE DELETE ON audit_anchor
BEGIN SELECT RAISE(ABORT, 'audit_anchor can not be removed'); END;

-- Forwards only, onto a record that is there, and that another one already tells of.
CREATE TRIGGER audit_anchor_moves_forwards BEFORE UPDATE ON audit_anchor
WHEN NEW.number <= OLD.number
  OR NOT EXISTS (SELECT 1 FROM audit_logs WHERE number = NEW.number AND hash = NEW.hash)
  OR NOT EXISTS (SELECT 1 FROM audit_logs WHERE number > NEW.number AND operation = 'audit.trimmed'
                    AND record_id = CAST(NEW.number AS TEXT))
BEGIN SELECT RAISE(ABORT, 'audit_anchor moves forwards, onto a record, once that is recorded'); END;
