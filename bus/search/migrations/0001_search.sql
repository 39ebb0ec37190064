-- The words of the messages that are kept. The table holds no texts: a message is read where it stands, by its seq.
-- text: the payload's values. who: the sender and the type. marks: sender, type and address, each as one word (bus.search.words).
CREATE VIRTUAL TABLE search_index USING fts5 (
    text,
    who,
    marks,
    content = '',
    contentless_delete = 1,
    tokenize = 'unicode61 remove_diacritics 0'
);
-- Its parts are joined by each job, a few pages at a time: left to itself it joins 64 at once, for 12 ms.
INSERT INTO search_index (search_index, rank) VALUES ('automerge', 0);

-- One row: what has been indexed, up to which seq. It rises in the transaction that fills the index.
CREATE TABLE search_progress (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    indexed_to INTEGER NOT NULL
);
INSERT INTO search_progress (one, indexed_to) VALUES (1, 0);
