-- The audit trail: what SQLite's file of this name makes, with its triggers in PostgreSQL's words.
CREATE TABLE audit_logs (
    number     BIGINT PRIMARY KEY,
    timestamp  BIGINT NOT NULL,
    table_name TEXT COLLATE "C" NOT NULL,
    record_id  TEXT COLLATE "C" NOT NULL,
    operation  TEXT COLLATE "C" NOT NULL,
    outcome    TEXT COLLATE "C" NOT NULL,
    old_values TEXT COLLATE "C",
    new_values TEXT COLLATE "C",
    user_id    TEXT COLLATE "C" NOT NULL,
    org_id     TEXT COLLATE "C",
    address    TEXT COLLATE "C" NOT NULL,
    request_id TEXT COLLATE "C" NOT NULL,
    times      BIGINT NOT NULL,
    hash       TEXT COLLATE "C" NOT NULL
);
CREATE INDEX audit_logs_by_user ON audit_logs (user_id, number);
CREATE INDEX audit_logs_by_operation ON audit_logs (operation, number);

CREATE TABLE audit_anchor (
    id     BIGINT PRIMARY KEY CHECK (id = 1),
    number BIGINT NOT NULL,
    hash   TEXT COLLATE "C" NOT NULL
);
INSERT INTO audit_anchor VALUES (1, 0, '0000000000000000000000000000000000000000000000000000000000000000');

-- One function for all that is refused in any case: the trigger's argument is what it says.
CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '%', TG_ARGV[0];
END $$;

CREATE FUNCTION audit_logs_append() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.number IS DISTINCT FROM
        1 + coalesce((SELECT max(number) FROM audit_logs), (SELECT number FROM audit_anchor)) THEN
        RAISE EXCEPTION 'audit_logs is appended to, one number after another';
    END IF;
    RETURN NEW;
END $$;

CREATE FUNCTION audit_logs_trim() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.number > (SELECT number FROM audit_anchor) THEN
        RAISE EXCEPTION 'only retention takes records out of audit_logs';
    END IF;
    RETURN OLD;
END $$;

-- Forwards only, onto a record that is there, and that another one already tells of.
CREATE FUNCTION audit_anchor_move() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.number <= OLD.number
        OR NOT EXISTS (SELECT 1 FROM audit_logs WHERE number = NEW.number AND hash = NEW.hash)
        OR NOT EXISTS (SELECT 1 FROM audit_logs WHERE number > NEW.number AND operation = 'audit.trimmed'
                          AND record_id = CAST(NEW.number AS TEXT)) THEN
        RAISE EXCEPTION 'audit_anchor moves forwards, onto a record, once that is recorded';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER audit_logs_in_order BEFORE INSERT ON audit_logs FOR EACH ROW EXECUTE FUNCTION audit_logs_append();
CREATE TRIGGER audit_logs_stay_as_written BEFORE UPDATE ON audit_logs FOR EACH ROW
    EXECUTE FUNCTION audit_refuse('audit_logs can not be changed');
CREATE TRIGGER audit_logs_stay BEFORE DELETE ON audit_logs FOR EACH ROW EXECUTE FUNCTION audit_logs_trim();
CREATE TRIGGER audit_logs_are_not_emptied BEFORE TRUNCATE ON audit_logs
    EXECUTE FUNCTION audit_refuse('only retention takes records out of audit_logs');
CREATE TRIGGER audit_anchor_is_one BEFORE INSERT ON audit_anchor FOR EACH ROW
    EXECUTE FUNCTION audit_refuse('audit_anchor has one row');
CREATE TRIGGER audit_anchor_stays BEFORE DELETE ON audit_anchor FOR EACH ROW
    EXECUTE FUNCTION audit_refuse('audit_anchor can not be removed');
CREATE TRIGGER audit_anchor_is_not_emptied BEFORE TRUNCATE ON audit_anchor
    EXECUTE FUNCTION audit_refuse('audit_anchor can not be removed');
CREATE TRIGGER audit_anchor_moves_forwards BEFORE UPDATE ON audit_anchor FOR EACH ROW
    EXECUTE FUNCTION audit_anchor_move();
