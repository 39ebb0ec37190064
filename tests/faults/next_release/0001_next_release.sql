-- What a release may do to tables that the one before it still serves: add.
ALTER TABLE messages ADD COLUMN next_release TEXT;
CREATE TABLE next_release (id INTEGER PRIMARY KEY, said TEXT NOT NULL);
