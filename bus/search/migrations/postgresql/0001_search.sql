-- The words of the messages that are kept. Weights: A the payload's values, B the sender and the type, and D sender, type and
-- address, each as one word (bus.search.words).
CREATE TABLE search_index (
    seq      BIGINT PRIMARY KEY,
    document TSVECTOR NOT NULL
);
CREATE INDEX search_index_by_word ON search_index USING gin (document);

-- One row: what has been indexed, up to which seq. It rises in the transaction that fills the index.
CREATE TABLE search_progress (
    one        BIGINT PRIMARY KEY CHECK (one = 1),
    indexed_to BIGINT NOT NULL
);
INSERT INTO search_progress (one, indexed_to) VALUES (1, 0);
